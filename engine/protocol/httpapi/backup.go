package httpapi

import (
	"context"
	"io"
	"net"
	"strconv"
	"time"
)

// Backups copies all that the router keeps.
type Backups interface {
	// OpenBackup holds on to all that is kept as it is now; what was acknowledged before is in it. There is one at a
	// time: event.ErrConflict.
	OpenBackup(ctx context.Context) (Backup, error)
}

// Backup is one. Close it.
type Backup interface {
	WriteTo(ctx context.Context, w io.Writer) error
	Close() error
}

// Rates of a backup, in bytes a second.
const (
	backupRate    = 64 << 20
	minBackupRate = 64 << 10
)

// backup answers GET /v1/backup.
func (c *call) backup() error {
	rate := int64(backupRate)
	if v := c.query("rate"); v != "" {
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil || n < minBackupRate {
			return invalidf("?rate", "is %.20q; want bytes a second, %d or more", v, minBackupRate)
		}
		rate = n
	}
	if err := c.s.roomForStream(); err != nil {
		return err
	}
	if c.ctx.IsHead() {
		c.ctx.Response.Header.SetContentType("application/x-tar")
		return nil
	}
	b, err := c.s.o.Backend.OpenBackup(c.s.work)
	if err != nil {
		return err
	}
	c.s.o.Guard.Taken(c.principal, c.addr(), "backup", "GET /v1/backup") // now: one that is cut off has told as well
	st := &backupStream{outStream: c.outStream(), backup: b, rate: rate}
	return c.takeOver(&takeover{serve: st.serve, never: st.close})
}

// A backupStream sends one backup, at a rate that leaves the disk to those who publish.
type backupStream struct {
	outStream
	backup Backup
	rate   int64
}

func (st *backupStream) close() {
	if err := st.backup.Close(); err != nil {
		st.s.o.Log.Error("backup", "error", err)
	}
}

// serve writes until it is through, the client is gone or too slow, or the server drains. One that was cut off lacks its
// end, which says so to whoever reads it.
func (st *backupStream) serve(draining context.Context, nc net.Conn, _ []byte) {
	defer st.close()
	ctx, stop := watch(draining, nc)
	defer stop()
	st.begin("application/x-tar")
	if st.flush(nc) != nil {
		return
	}
	began, sent := time.Now(), int64(0)
	err := st.backup.WriteTo(ctx, writeFunc(func(b []byte) (int, error) {
		if err := nc.SetWriteDeadline(time.Now().Add(st.s.o.WriteTimeout)); err != nil {
			return 0, err
		}
		n, err := nc.Write(b)
		if sent += int64(n); err != nil {
			return n, err
		}
		return n, sleepUntil(ctx, began.Add(time.Duration(float64(sent)/float64(st.rate)*float64(time.Second))))
	}))
	if err != nil {
		st.s.o.Log.Warn("a backup did not end well", "bytes", sent, "error", err)
	}
}

type writeFunc func([]byte) (int, error)

// Write implements io.Writer.
func (f writeFunc) Write(b []byte) (int, error) { return f(b) }

// sleepUntil returns at t, or ctx's error.
func sleepUntil(ctx context.Context, t time.Time) error {
	left := time.Until(t)
	if left < time.Millisecond {
		return ctx.Err()
	}
	timer := time.NewTimer(left)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
