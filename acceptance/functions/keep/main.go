// Command keep is the acceptance test's function: of a GitHub webhook it keeps action, repository.full_name and
// sender.login. It drops what was deleted, and rejects what has no action.
package main

import millrace "github.com/millrace/millrace/sdk/go"

// kept are the paths that leave the router, where an event has them.
var kept = []string{"action", "repository.full_name", "sender.login"}

// Buffers that serve every event: an instance handles one at a time.
var made, next []byte

func init() { millrace.Handle(keep) }

func main() {}

func keep(e *millrace.Event, out *millrace.Results) {
	data := e.Data()
	action, ok := millrace.GetString(data, "action")
	if !ok {
		out.Reject(422, "the event has no action")
		return
	}
	if action == "deleted" {
		out.Drop()
		return
	}
	made = append(made[:0], "{}"...)
	for _, path := range kept {
		value, ok := millrace.Get(data, path)
		if !ok {
			continue
		}
		var err error
		if next, err = millrace.Set(next[:0], made, path, value); err != nil {
			out.Reject(422, path+": "+err.Error())
			return
		}
		made, next = next, made
	}
	out.Replace(made)
}
