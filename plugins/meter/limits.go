package meter

// Limits bounds a module before anything compiles it: the compiler's time and memory grow faster than the
// size of what it is given, and no context stops it. Zero values are the defaults.
type Limits struct {
	Bytes     int // of the module: 64 MiB
	Functions int // imported ones included: 200,000
	Types     int // function types: 50,000
	Names     int // imports, and as many exports: 10,000
	Globals   int // imported ones included: 10,000
	Tables    int // imported ones included: 8
	Elements  int // of all element segments together: 1,000,000
	Segments  int // of data, and as many of elements: 100,000
	Params    int // of a function type or block, and as many results: 1,000
	Locals    int // of a function, parameters included: 3,000
	AllLocals int // of all functions together: 4,000,000
	Body      int // bytes of a function's code: 4 MiB
	Depth     int // of nested blocks: 2,000
	Labels    int // of all br_table of a function together: 100,000

	// Ways bounds how much a function branches: its blocks, branches, returns, twice its ifs, six times its
	// loops and an eighth of its br_table labels together: 16,000. Some of the compiler's passes take the square
	// of it: 16,000 take about 3 s.
	Ways int
	// WayLocals bounds the product of a function's ways and locals: 1 Mi. The compiler may carry every local
	// along every way: 1 Mi takes up to about 2 s.
	WayLocals int
	// Heavy bounds the sum of ways × (locals + ways/128) over all functions for which that exceeds 64 Ki: 8 Mi.
	Heavy int
	// Growth is how much longer the rewritten module may be: 16 times what came, and 64 KiB, is the default.
	Growth int
}

const heavyFrom = 64 << 10

func (l Limits) withDefaults() Limits {
	for _, d := range []struct {
		v *int
		n int
	}{
		{&l.Bytes, 64 << 20}, {&l.Functions, 200_000}, {&l.Types, 50_000}, {&l.Names, 10_000}, {&l.Globals, 10_000},
		{&l.Tables, 8}, {&l.Elements, 1_000_000}, {&l.Segments, 100_000}, {&l.Params, 1_000}, {&l.Locals, 3_000}, {&l.AllLocals, 4_000_000},
		{&l.Body, 4 << 20}, {&l.Depth, 2_000}, {&l.Labels, 100_000}, {&l.Ways, 16_000}, {&l.WayLocals, 1 << 20}, {&l.Heavy, 8 << 20}, {&l.Growth, 16},
	} {
		if *d.v == 0 {
			*d.v = d.n
		}
	}
	return l
}
