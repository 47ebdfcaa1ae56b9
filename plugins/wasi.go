package plugins

import (
	"context"
	"crypto/sha256"
	"fmt"
	"time"
	"unsafe"

	"github.com/tetratelabs/wazero/api"
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
	in.stdout = lines{f: f, level: 1}
	in.stderr = lines{f: f, level: 2}
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
