package redpanda_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/plugins"
	"github.com/millrace/millrace/plugins/abi/redpanda"
	"github.com/millrace/millrace/plugins/abitest"
)

func open(t testing.TB, module []byte, def event.Function) (*plugins.Function, func(), error) {
	t.Helper()
	ctx := context.Background()
	h, err := plugins.NewHost(ctx, plugins.Options{ABIs: []plugins.ABI{redpanda.ABI{}}, Instances: 1})
	if err != nil {
		t.Fatal(err)
	}
	end := func() {
		if err := h.Close(ctx); err != nil {
			t.Error(err)
		}
	}
	if def.Digest, err = h.Put(ctx, module); err != nil {
		t.Fatal(err)
	}
	def.Name = "transform"
	f, err := h.Open(ctx, def)
	return f, end, err
}

func call(t testing.TB, f *plugins.Function, datas ...string) string {
	t.Helper()
	c := &plugins.Call{}
	for i, d := range datas {
		e := event.Event{ID: "id", Source: "/t", Type: "t", PartitionKey: "k", Data: []byte(d), Extensions: []event.Attribute{{Name: "region", Value: "eu"}, {Name: "n", Kind: event.Integer, Value: "7"}}}
		r := event.Record(e.AppendRecord(nil))
		r.SetPlace(event.Position{Offset: uint64(i)}, 1e9)
		c.Events = append(c.Events, r)
	}
	out := &plugins.Outcome{}
	if err := f.Call(context.Background(), c, out); err != nil {
		t.Fatal(err)
	}
	var s []string
	for i := range out.Results {
		r := &out.Results[i]
		x := fmt.Sprintf("%d:%s(%s)", r.Index, r.Verdict, r.Data)
		if r.Verdict == plugins.Emit && r.Count > 0 {
			var e event.Event
			r.Event(c.Events[r.Index], &e)
			x += fmt.Sprintf(" id=%s type=%s key=%s datacontenttype=%s topic=%s %v", e.ID, e.Type, e.PartitionKey, e.DataContentType, e.Topic, e.Extensions)
		}
		s = append(s, x)
	}
	for _, x := range out.Failures {
		s = append(s, fmt.Sprintf("%d!%s %v", x.Index, x.Reason, x.Err))
	}
	return strings.Join(s, " ")
}

// A hostile transform fails at its event alone, and says why.
func TestHostile(t *testing.T) {
	f, end, err := open(t, abitest.CCommand(t, "testdata/transform.c"), event.Function{Limits: event.FunctionLimits{CPU: 50 * time.Millisecond}})
	defer end()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ data, want string }{
		{"t", "trap unreachable"},
		{"z", "deadline limits.cpu"},
		{"f", "output more than 1024 results"},
		{"F" + strings.Repeat("x", 1<<20), "output more than 4194304 bytes"},
		{"o", "output a record of 64 bytes at 4294967288, outside of the memory"},
		{"O", "output options of 64 bytes"},
		{"b", "output a record of"}, {"B", "output a record of 0 bytes"},
		{"q", "output options that are not a topic's name"},
		{"e", "trap the guest exited with status 1"},
	} {
		got := call(t, f, "1", c.data, "2")
		if want := "0:EMIT(1) 2:EMIT(2) 1!" + c.want; !strings.HasPrefix(got, want) {
			t.Errorf("%.20s: got %.300s", c.data, got)
		}
	}
	if got, want := call(t, f, "1", "s", "2"), "0:EMIT(1) 1:DROP() 2:EMIT(2)"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got := call(t, f, "p"); got != "0:DROP()" { // there is no next record, so nothing is written anywhere
		t.Error(got)
	}
	if st := f.Stats(); st.Reruns > 3*12 {
		t.Errorf("%d runs again for 10 faults; the cursor tells whose fault it was", st.Reruns)
	}
}

func TestRecords(t *testing.T) {
	f, end, err := open(t, abitest.CCommand(t, "testdata/transform.c"), event.Function{})
	defer end()
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // the transform goes on with the next batch
		for _, c := range []struct{ data, want string }{
			{"x", "0:EMIT(x)"}, {"", "0:EMIT()"}, {"d", "0:DROP()"}, {"r", "0:EMIT(r)"},
			{"T", "0:EMIT(T) id= type=t key=k datacontenttype= topic=audit [{region 0 eu} {n 2 7}]"},
			{"n", "0:EMIT(hi)"},
			{"h", "0:EMIT() id= type=u key=k datacontenttype=text/plain topic= [{n 2 7}]"},
		} {
			if got := call(t, f, c.data); got != c.want {
				t.Errorf("%s: got %s, want %s", c.data, got, c.want)
			}
		}
	}
	if st := f.Stats(); st.Created != 1 {
		t.Errorf("%d instances; one is enough", st.Created)
	}
}

// A transform that does not come to ask for records is refused when it is pushed.
func TestUnhealthy(t *testing.T) {
	module := abitest.CCommand(t, "testdata/transform.c")
	for mode, want := range map[string]string{
		"ends": "must call OnRecordWritten", "exits": "exited with status 4", "wild": "", "early": "", "deaf": "",
	} {
		f, end, err := open(t, module, event.Function{Config: map[string]string{"MODE": mode}})
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v", mode, err)
		}
		if err == nil {
			got := call(t, f, "1", "2")
			if want := map[string]string{"wild": "0!output read_batch_header is to write outside of the memory 1!output", "early": "0:EMIT(1) 1:EMIT(2)", "deaf": "0!output the transform asked for another batch after 0 of 1"}[mode]; !strings.HasPrefix(got, want) {
				t.Errorf("%s: %s", mode, got)
			}
		}
		end()
	}
}

func TestStartRefuses(t *testing.T) {
	for _, config := range []map[string]string{{"a=b": "1"}, {"a": "\x00"}, {"": "1"}} {
		if _, _, err := (redpanda.ABI{}).Start("f", config); err == nil {
			t.Errorf("%q is taken", config)
		}
	}
}

// Fuel is granted while the transform waits in the middle of a call, and counts all the same.
func TestFuel(t *testing.T) {
	module := abitest.CCommand(t, "testdata/transform.c")
	free, end, err := open(t, module, event.Function{})
	defer end()
	if err != nil {
		t.Fatal(err)
	}
	call(t, free, "1", "2", "3", "4")
	each := free.Stats().Fuel / 4
	f, end, err := open(t, module, event.Function{Limits: event.FunctionLimits{Fuel: 10 * each}})
	defer end()
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		if got := call(t, f, "1", "2", "3"); got != "0:EMIT(1) 1:EMIT(2) 2:EMIT(3)" {
			t.Fatal(got)
		}
	}
	if got := call(t, f, "1", "z"); !strings.HasPrefix(got, "0:EMIT(1) 1!fuel limits.fuel") {
		t.Error(got)
	}
	if each < 10 {
		t.Errorf("an event costs %d", each)
	}
}

func BenchmarkCall(b *testing.B) {
	for name, module := range map[string][]byte{"C": abitest.CCommand(b, "testdata/transform.c"), "Go": abitest.GoCommand(b, "testdata/enrich")} {
		b.Run(name, func(b *testing.B) {
			f, end, err := open(b, module, event.Function{})
			if err != nil {
				b.Fatal(err)
			}
			defer end()
			c := &plugins.Call{}
			for i := range 64 {
				e := event.Event{ID: "1", Source: "/t", Type: "t", Data: []byte(`{"email":"a@b","note":"` + strings.Repeat("x", 1000) + `"}`)}
				r := event.Record(e.AppendRecord(nil))
				r.SetPlace(event.Position{Offset: uint64(i)}, 1e9)
				c.Events = append(c.Events, r)
			}
			var out plugins.Outcome
			for b.Loop() {
				if err := f.Call(context.Background(), c, &out); err != nil || len(out.Failures) > 0 || f.Stats().Reruns > 0 {
					b.Fatal(err, out.Failures)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*64), "ns/event")
		})
	}
}

func TestCallAllocatesNothing(t *testing.T) {
	f, end, err := open(t, abitest.CCommand(t, "testdata/transform.c"), event.Function{})
	defer end()
	if err != nil {
		t.Fatal(err)
	}
	c := &plugins.Call{}
	for i := range 16 {
		e := event.Event{ID: "1", Source: "/t", Type: "t", Data: []byte(strings.Repeat("1", 1024))}
		r := event.Record(e.AppendRecord(nil))
		r.SetPlace(event.Position{Offset: uint64(i)}, 1e9)
		c.Events = append(c.Events, r)
	}
	var out plugins.Outcome
	if n := testing.AllocsPerRun(100, func() {
		if err := f.Call(context.Background(), c, &out); err != nil || len(out.Results) != 16 {
			t.Fatal(err, out.Failures)
		}
	}); n > 0 {
		t.Errorf("%v allocations a batch of 16", n)
	}
}
