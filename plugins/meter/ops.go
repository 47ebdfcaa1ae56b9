package meter

// Opcodes that the rewriter has to tell apart; all others differ in their immediates only.
const (
	opUnreachable       = 0x00
	opNop               = 0x01
	opBlock             = 0x02
	opLoop              = 0x03
	opIf                = 0x04
	opElse              = 0x05
	opEnd               = 0x0B
	opBr                = 0x0C
	opBrIf              = 0x0D
	opBrTable           = 0x0E
	opReturn            = 0x0F
	opCall              = 0x10
	opCallIndirect      = 0x11
	opDrop              = 0x1A
	opSelect            = 0x1B
	opSelectTyped       = 0x1C
	opLocalGet          = 0x20
	opLocalSet          = 0x21
	opLocalTee          = 0x22
	opGlobalGet         = 0x23
	opGlobalSet         = 0x24
	opTableGet          = 0x25
	opTableSet          = 0x26
	opLoadFirst         = 0x28
	opStoreLast         = 0x3E
	opMemorySize        = 0x3F
	opMemoryGrow        = 0x40
	opI32Const          = 0x41
	opI64Const          = 0x42
	opF32Const          = 0x43
	opF64Const          = 0x44
	opI32Eq             = 0x46
	opI32Ne             = 0x47
	opI32LeU            = 0x4D
	opI32GtU            = 0x4B
	opI32LtU            = 0x49
	opI64LtS            = 0x53
	opI64GtU            = 0x56
	opI32Add            = 0x6A
	opI32Sub            = 0x6B
	opI32Or             = 0x72
	opI64Or             = 0x84
	opI32ReinterpretF32 = 0xBC
	opI64ReinterpretF64 = 0xBD
	opF32ReinterpretI32 = 0xBE
	opF64ReinterpretI64 = 0xBF
	opI32DivS           = 0x6D
	opI32RemU           = 0x70
	opI32ShrU           = 0x76
	opI64Add            = 0x7C
	opI64Sub            = 0x7D
	opI64Mul            = 0x7E
	opI64DivS           = 0x7F
	opI64RemU           = 0x82
	opI64Shl            = 0x86
	opI64ShrU           = 0x88
	opNumericFirst      = 0x45
	opNumericLast       = 0xC4 // sign extensions included
	opI64ExtendU        = 0xAD
	opRefNull           = 0xD0
	opRefIsNull         = 0xD1
	opRefFunc           = 0xD2
	opMisc              = 0xFC
	opVec               = 0xFD
)

// After opMisc.
const (
	miscSatLast    = 0x07
	miscMemoryInit = 0x08
	miscDataDrop   = 0x09
	miscMemoryCopy = 0x0A
	miscMemoryFill = 0x0B
	miscTableInit  = 0x0C
	miscElemDrop   = 0x0D
	miscTableCopy  = 0x0E
	miscTableGrow  = 0x0F
	miscTableSize  = 0x10
	miscTableFill  = 0x11
)

// After opVec.
const (
	vecLoadLast       = 0x0B // loads and the store, from 0
	vecConst          = 0x0C
	vecShuffle        = 0x0D
	vecOr             = 0x50
	vecLaneFirst      = 0x15 // extract and replace lane
	vecLaneLast       = 0x22
	vecLaneMemFirst   = 0x54 // load and store lane
	vecLaneMemLast    = 0x5B
	vecLoadZeroFirst  = 0x5C
	vecLoadZeroLast   = 0x5D
	vecLast           = 0xFF
	vecUnassignedByte = 0x80 // opcodes from here on take two bytes, the second being 1
)

// vecUnassigned are the opcodes below vecLast that mean nothing.
var vecUnassigned = [...]byte{0x9A, 0xA2, 0xA5, 0xA6, 0xAF, 0xB0, 0xB2, 0xB3, 0xB4, 0xBB, 0xC2, 0xC5, 0xC6, 0xCF, 0xD0, 0xD2, 0xD3, 0xD4, 0xE2, 0xEE}

// An instr is one decoded instruction. x and y are its indices in the order of the encoding.
type instr struct {
	at   int // of its first byte
	op   byte
	sub  byte // after a prefix
	x, y uint32
}

// next decodes one instruction. The labels of a br_table are appended to *labels, the default last.
func (r *reader) next(labels *[]uint32) instr {
	in := instr{at: r.at}
	in.op = r.byte("instruction")
	switch op := in.op; {
	case op == opUnreachable, op == opNop, op == opElse, op == opEnd, op == opReturn, op == opDrop, op == opSelect, op == opRefIsNull:
	case op == opBlock, op == opLoop, op == opIf:
		in.x = r.blockType()
	case op == opBr, op == opBrIf, op == opCall, op == opRefFunc, opLocalGet <= op && op <= opTableSet:
		in.x = r.u32("index")
	case op == opBrTable:
		r.list("labels", len(r.b), func(int) { *labels = append(*labels, r.u32("label")) })
		*labels = append(*labels, r.u32("label"))
	case op == opCallIndirect:
		in.x, in.y = r.u32("type"), r.u32("table")
	case op == opSelectTyped:
		if n := r.byte("number of types"); n != 1 {
			r.fail("a select has %d types; one is allowed", n)
		}
		r.valueType("type of a select")
	case opLoadFirst <= op && op <= opStoreLast:
		r.memArg()
	case op == opMemorySize, op == opMemoryGrow:
		r.memory()
	case op == opI32Const:
		r.skipSigned(5, "i32.const")
	case op == opI64Const:
		r.skipSigned(10, "i64.const")
	case op == opF32Const:
		r.skip(4, "f32.const")
	case op == opF64Const:
		r.skip(8, "f64.const")
	case opNumericFirst <= op && op <= opNumericLast:
	case op == opRefNull:
		if t := r.byte("type of ref.null"); t != funcref && t != externref {
			r.fail("ref.null has type 0x%02x; funcref and externref are known", t)
		}
	case op == opMisc:
		r.misc(&in)
	case op == opVec:
		r.vec(&in)
	default:
		r.at = in.at
		r.fail("instruction 0x%02x is not known: build for WebAssembly 2.0, without %s", op, proposal(op))
	}
	return in
}

// proposal names what most likely brought an unknown opcode in.
func proposal(op byte) string {
	switch {
	case op == 0x12 || op == 0x13:
		return "tail calls"
	case op >= 0x06 && op <= 0x0A || op == 0x18 || op == 0x19 || op == 0x1F:
		return "exceptions"
	case op == 0xFE:
		return "threads (atomics)"
	case op == 0x14 || op == 0x15 || op >= 0xD3 && op <= 0xD6:
		return "typed function references"
	case op == 0xFB:
		return "garbage-collected types"
	}
	return "later proposals"
}

func (r *reader) misc(in *instr) {
	sub := r.u32("instruction after 0xFC")
	in.sub = byte(sub)
	switch {
	case sub <= miscSatLast:
	case sub == miscMemoryInit:
		in.x = r.u32("data segment")
		r.memory()
	case sub == miscMemoryCopy:
		r.memory()
		r.memory()
	case sub == miscMemoryFill:
		r.memory()
	case sub == miscTableInit, sub == miscTableCopy:
		in.x, in.y = r.u32("first index"), r.u32("second index")
	case sub == miscDataDrop, sub == miscElemDrop, sub == miscTableGrow, sub == miscTableSize, sub == miscTableFill:
		in.x = r.u32("index")
	default:
		r.at = in.at
		r.fail("instruction 0xFC %d is not known: build for WebAssembly 2.0", sub)
	}
}

// vec decodes a vector instruction. wazero takes the opcode to be one byte, and the 1 that ends a two-byte
// opcode to be a nop; only encodings that mean the same to it as to the specification are let through.
func (r *reader) vec(in *instr) {
	in.sub = r.byte("instruction after 0xFD")
	if in.sub >= vecUnassignedByte && r.byte("instruction after 0xFD") != 1 {
		r.at = in.at
		r.fail("a vector instruction is not encoded in the shortest way or not known: build for WebAssembly 2.0, without relaxed SIMD")
		return
	}
	switch sub := in.sub; {
	case sub <= vecLoadLast, vecLoadZeroFirst <= sub && sub <= vecLoadZeroLast:
		r.memArg()
	case sub == vecConst, sub == vecShuffle:
		r.skip(16, "vector")
	case vecLaneFirst <= sub && sub <= vecLaneLast:
		r.byte("lane")
	case vecLaneMemFirst <= sub && sub <= vecLaneMemLast:
		r.memArg()
		r.byte("lane")
	default:
		for _, u := range vecUnassigned {
			if sub == u {
				r.at = in.at
				r.fail("vector instruction 0xFD 0x%02x is not known: build for WebAssembly 2.0", sub)
			}
		}
	}
}

func (r *reader) memArg() {
	r.u32("alignment")
	r.u32("offset")
}

func (r *reader) memory() {
	if r.byte("memory") != 0 {
		r.fail("an instruction is about a memory other than 0; one memory is supported")
	}
}

// blockType passes over the type of a block and returns its index + 1, or 0 if it is none.
func (r *reader) blockType() uint32 {
	if r.at < len(r.b) {
		switch r.b[r.at] {
		case noResult, i32, i64, f32, f64, v128, funcref, externref:
			r.at++
			return 0
		}
		if c := r.b[r.at]; c < 0x80 && c&0x40 != 0 {
			r.fail("a block has type 0x%02x, which is not known", c)
		}
	}
	at := r.at
	t := r.u32("type of a block")
	if t >= 1<<27 || r.err == nil && r.b[r.at-1]&0x40 != 0 { // it is a signed number
		r.at = at
		r.fail("a block's type %d does not exist", t)
	}
	return t + 1
}
