// Command calls makes every call of the router that the SDK has and says what came of it. Its siblings in the
// other languages say the same.
package main

import (
	"fmt"
	"time"

	millrace "github.com/millrace/millrace/sdk/go"
	"github.com/millrace/millrace/sdk/go/fetch"
	"github.com/millrace/millrace/sdk/go/kv"
	"github.com/millrace/millrace/sdk/go/secret"
)

func init() { millrace.Handle(calls) }

func main() {}

func calls(e *millrace.Event, out *millrace.Results) {
	if string(e.Data()) == "later" {
		out.Retry(1500 * time.Millisecond)
		return
	}
	millrace.Log(millrace.Warn, "hello")
	millrace.Count("seen", 2)
	var random [8]byte
	millrace.Random(random[:])
	was, ok, _ := kv.Get("last")
	if !ok {
		was = []byte("none")
	}
	_ = kv.Put("last", e.Data(), time.Hour)
	_ = kv.Put("gone", []byte("x"), 0)
	_ = kv.Delete("gone")
	_, gone, _ := kv.Get("gone")
	sum, _ := kv.Add("sum", -3)
	_, bad := kv.Add("last", 1)
	token, _, _ := secret.Get("token")
	_, none, _ := secret.Get("none")
	answer, err := fetch.Do(fetch.Request{Method: "POST", URL: "https://api.example.com/x", Headers: []fetch.Header{{Name: "X-A", Value: "b"}},
		Body: []byte("ask"), Timeout: 1500 * time.Millisecond})
	if err != nil {
		answer = &fetch.Response{}
	}
	_, denied := fetch.Do(fetch.Request{URL: "https://other.example.com/"})
	out.Relabel(millrace.Topic("audit"), millrace.Subject("s"), millrace.Unset("region"))
	out.Replace([]byte(fmt.Sprintf("now=%t random=%t was=%s gone=%t sum=%d bad=%t token=%s none=%t status=%d tag=%s body=%d denied=%t",
		millrace.Now().Equal(e.Received()), random != [8]byte{}, was, gone, sum, bad == millrace.ErrBadArgument, token, none,
		answer.Status, answer.Header("x-tag"), len(answer.Body), denied == millrace.ErrDenied)))
}
