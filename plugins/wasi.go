package plugins

import (
	"context"
	"crypto/sha256"
	"fmt"
	"strings"
	"time"
	"unsafe"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/experimental"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"
	"github.com/tetratelabs/wazero/sys"

	"github.com/millrace/millrace/plugins/meter"
)

// instantiate makes an instance and runs its start function, _initialize and whatever its ABI asks of a
// new one. WASI is there without files or sockets; arguments and environment have only Programs.
func (f *Function) instantiate(ctx context.Context) (*Instance, error) {
	in := &Instance{fn: f, made: time.Now(), hash: sha256.New()}
	in.ctx = guestContext{Context: ctx, in: in}
	code, err := f.hold(ctx)
	if err != nil {
		return nil, err
	}
	in.stdout = lines{in: in, level: 1}
	in.stderr = lines{in: in, level: 2}
	if err := in.accompany(ctx); err != nil {
		f.drop()
		return nil, err
	}
	cfg := f.cfg.WithStdin(&in.stdin).WithStdout(&in.stdout).WithStderr(&in.stderr).
		WithRandSource(filler(in.Random)).
		WithWalltime(func() (int64, int32) {
			now := in.Now()
			return now / int64(time.Second), int32(now % int64(time.Second))
		}, 1).
		WithNanotime(func() int64 { return int64(time.Since(in.made)) }, sys.ClockResolution(1)).
		WithNanosleep(in.sleep).WithOsyield(func() {})
	in.begin(0)
	if in.module, err = f.host.runtime.InstantiateModule(&in.ctx, code.code, cfg); err != nil {
		if in.companion != nil {
			_ = in.companion.Close(ctx)
		}
		f.drop()
		if in.ended != nil {
			err = in.ended
		}
		return nil, fmt.Errorf("the module does not start: %s", bounded(err.Error()))
	}
	in.ctx.links = nil
	f.stats.created.Add(1)
	f.stats.instances.Add(1)
	if err := in.initialize(); err != nil {
		_ = in.close(ctx)
		return nil, err
	}
	in.ctx.Context = context.Background()
	return in, nil
}

func (in *Instance) initialize() (err error) {
	defer in.end()
	in.memory = in.module.Memory()
	if in.memory == nil {
		return fmt.Errorf("the module exports no memory")
	}
	in.fuel = in.module.ExportedGlobal(meter.GlobalFuel).(api.MutableGlobal) // metering put them there
	in.grantOf = in.module.ExportedGlobal(meter.GlobalGrant).(api.MutableGlobal)
	if init := in.Export("_initialize"); init != nil {
		if len(init.Definition().ParamTypes())+len(init.Definition().ResultTypes()) != 0 {
			return fmt.Errorf("_initialize has parameters or results; it has none")
		}
		if err := in.Invoke(init, nil); err != nil {
			in.flush()
			return fmt.Errorf("_initialize failed: %w", err)
		}
	}
	if in.guest, err = in.fn.abi.Bind(in); err != nil {
		in.flush()
		return err
	}
	if s, ok := in.guest.(Starter); ok {
		if err := s.Start(); err != nil {
			in.flush()
			return err
		}
	}
	in.flush()
	in.size = in.memory.Size()
	in.count()
	return nil
}

// linkWASI makes WASI's functions known. Those that do as much as a parameter says are counted as Work.
func linkWASI(ctx context.Context, r wazero.Runtime) error {
	_, err := wasi_snapshot_preview1.Instantiate(experimental.WithFunctionListenerFactory(ctx, laborious{}), r)
	return err
}

// laborious finds the functions of WASI whose work has no bound of its own, by the names of their parameters.
type laborious struct{}

func (laborious) NewFunctionListener(def api.FunctionDefinition) experimental.FunctionListener {
	var l labour
	for i, name := range def.ParamNames() {
		switch {
		case name == "iovs_len":
			l = append(l, portion{i, 8})
		case name == "nsubscriptions":
			l = append(l, portion{i, 64})
		case strings.HasSuffix(name, "path_len") && !strings.HasPrefix(name, "result."):
			l = append(l, portion{i, 1})
		}
	}
	if l == nil {
		return nil
	}
	return l
}

// labour is what a function of WASI does: for each of some parameters so many bytes.
type labour []portion

type portion struct {
	param int
	bytes uint64
}

func (l labour) Before(ctx context.Context, _ api.Module, _ api.FunctionDefinition, params []uint64, _ experimental.StackIterator) {
	for _, p := range l {
		InstanceOf(ctx).Work(int(uint64(uint32(params[p.param])) * p.bytes))
	}
}

func (labour) After(context.Context, api.Module, api.FunctionDefinition, []uint64) {}
func (labour) Abort(context.Context, api.Module, api.FunctionDefinition, error)    {}

// sleep is WASI's. It takes of the wall time only.
func (in *Instance) sleep(ns int64) {
	_ = in.Wait(func(ctx context.Context) error {
		t := time.NewTimer(time.Duration(ns))
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
		}
		return nil
	})
}

// filler makes a source of random bytes a Reader.
type filler func(p []byte)

func (r filler) Read(p []byte) (int, error) {
	r(p)
	return len(p), nil
}

// borrow is s as bytes that nobody may write.
func borrow(s string) []byte { return unsafe.Slice(unsafe.StringData(s), len(s)) }
