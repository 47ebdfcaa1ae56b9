// Command hide is a plug-in that masks the member email of an order, without decoding it.
package main

import (
	"bytes"

	"github.com/extism/go-pdk"
)

func main() {}

var member = []byte(`"email":"`)

//go:wasmexport hide
func hide() int32 {
	data := pdk.Input()
	if at := bytes.Index(data, member); at >= 0 {
		for at += len(member); at < len(data) && data[at] != '"'; at++ {
			data[at] = '*'
		}
	}
	pdk.Output(data)
	return 0
}
