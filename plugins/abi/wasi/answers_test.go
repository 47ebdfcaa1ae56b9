package wasi_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/plugins"
	"github.com/millrace/millrace/plugins/abitest"
)

// What JSON answers mean. The program says what it finds as the event's data.
func TestAnswers(t *testing.T) {
	f := open(t, abitest.CCommand(t, "testdata/filter.c"), event.Function{Config: map[string]string{"mode": "say"}})
	for _, c := range []struct{ answer, want string }{
		{`{"verdict":"pass"}`, "PASS"},
		{`{"verdict":"p\u0061ss"}`, "PASS"},
		{`{"verdict":"drop"}`, "DROP"},
		{`null`, "DROP"},
		{`[]`, "DROP"},
		{`[null]`, "DROP"},
		{`{"verdict":"retry"}`, "RETRY"},
		{`{"verdict":"retry","delay":"1.5s"}`, "RETRY/1500"},
		{`{"verdict":"reject","code":422,"reason":"a\"b\u00e9"}`, `REJECT/422 a"bé`},
		{`{"verdict":"reply","status":201,"data":{"a":1}}`, `REPLY/201 {"a":1}`},
		{`[{"verdict":"reply","status":201,"data":{"a" : 1}},{"verdict":"pass"}]`, `REPLY/201 {"a" : 1} PASS`},
		{`[{"verdict":"reply","contentType":"text/plain","data":"hi"},{"verdict":"drop"}]`, `REPLY hi datacontenttype=text/plain DROP`},
		{`[{"verdict":"reply","contentType":"image/png","data_base64":"AAE="},{"verdict":"pass"}]`, "REPLY \x00\x01 datacontenttype=image/png PASS"},
		{`{"verdict":"emit"}`, "EMIT (same)"},
		{`{"verdict":"emit","data":{"a" : [1]}}`, `EMIT {"a" : [1]}`},
		{`{"verdict":"emit","data":null}`, `EMIT null`},
		{`{"verdict":"emit","data_base64":"aGk="}`, `EMIT hi`},
		{`{"verdict":"emit","type":"x","subject":null,"n":7,"ok":true,"s":"t","topic":"other"}`, `EMIT (same) type=x -subject n=7 ok=true s=t topic=other`},
		{`{"verdict":"emit","datacontenttype":"text/plain","data":"a\nb"}`, "EMIT a\nb datacontenttype=text/plain"},
		{`{"specversion":"1.0","id":"9","source":"/s","type":"u","x":"y","data":[1]}`, `EMIT [1] id=9 source=/s type=u x=y`},
		{`[{"verdict":"emit"},{"verdict":"emit","type":"b"},{"verdict":"reject","code":1}]`, "REJECT/1"},

		{`7`, "! want an object"},
		{`[[]]`, "! want an object"},
		{`{}`, "! neither verdict nor specversion"},
		{`{"verdict":"Pass"}`, "! want one of pass"},
		{`{"verdict":1}`, "! want one of pass"},
		{`{"verdict":"pass","reason":"x"}`, `! a member "reason"`},
		{`{"verdict":"pass","verdict":"drop"}`, "! want one of pass"},
		{`{"verdict":"emit","specversion":"1.0"}`, "! both verdict and specversion"},
		{`{"specversion":"1.0","id":"9"}`, "! source"},
		{`{"verdict":"retry","delay":1500}`, "! want a string"},
		{`{"verdict":"retry","delay":"-1s"}`, "! want a string"},
		{`{"verdict":"retry","delay":"2000h"}`, "! want a string"},
		{`{"verdict":"reject","code":-1}`, "! integer of 32 bits"},
		{`{"verdict":"reject","reason":{}}`, "! want a string"},
		{`{"verdict":"reply","status":99}`, "! 200 to 599"},
		{`{"verdict":"reply","body":1}`, `! a member "body"`},
		{`{"verdict":"emit","data":1,"data_base64":""}`, "! both data and data_base64"},
		{`{"verdict":"emit","data_base64":"?"}`, "! not base64"},
		{`{"verdict":"emit","datacontenttype":"text/plain","data":{}}`, "! want a string, data_base64"},
		{`{"verdict":"emit","Bad-Name":"x"}`, "! EMIT"},
		{`{"verdict":"emit","":"x"}`, "! a name of 0 bytes"},
		{`{"verdict":"emit","x":{}}`, "! put it into data"},
		{`{"verdict":"emit","x":1.5}`, "! integer of 32 bits"},
		{`{"verdict":"emit","topic":"no good"}`, "! topic"},
		{`[{"verdict":"drop"},{"verdict":"emit"}]`, "! EMIT after DROP"},
		{`[{"verdict":"pass"},{"verdict":"pass"}]`, "! PASS after PASS"},
	} {
		out := call(t, f, c.answer)
		var got []string
		for i := range out.Results {
			r := &out.Results[i]
			s := r.Verdict.String()
			if r.Arg != 0 {
				s += fmt.Sprintf("/%d", r.Arg)
			}
			if r.Flags&plugins.SameData != 0 {
				s += " (same)"
			}
			if r.Data != nil {
				s += " " + string(r.Data)
			}
			event.AttrsOf(r.Attrs, r.Count, func(a event.Attr) bool {
				name := a.Name
				if a.Tag != event.TagExtension {
					name = a.Tag.Name()
				}
				if a.Tag == event.TagTopic {
					name = "topic"
				}
				if a.Unset {
					s += " -" + name
				} else {
					s += " " + name + "=" + a.Value
				}
				return true
			})
			got = append(got, s)
		}
		for _, x := range out.Failures {
			got = append(got, "! "+string(x.Reason)+x.Err.Error())
		}
		s := strings.Join(got, " ")
		if want, fails := strings.CutPrefix(c.want, "! "); fails && (len(out.Failures) != 1 || out.Failures[0].Reason != plugins.ReasonOutput || !strings.Contains(s, want)) || !fails && s != c.want {
			t.Errorf("%s:\n got %s\nwant %s", c.answer, s, c.want)
		}
	}
}
