// Package js runs functions that are written in JavaScript: QuickJS, compiled to WASM, embedded. So a script is
// bounded in time and memory as every function is. docs/javascript.md says what scripts see.
package js

import (
	_ "embed"

	"github.com/millrace/millrace/plugins"
)

// Language is what scripts in JavaScript say of themselves.
const Language = "js"

//go:generate ./quickjs/build.sh quickjs.wasm

//go:embed quickjs/quickjs.wasm
var quickjs []byte

// Engine runs scripts in JavaScript. Its guest speaks the native convention.
func Engine() plugins.Engine { return plugins.Engine{Language: Language, Module: quickjs} }
