package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/bufbuild/protocompile/linker"
	"github.com/millrace/millrace/sdk/client/millracev1"
	"google.golang.org/protobuf/reflect/protoreflect"
)

var update = flag.Bool("update", false, "write testdata/numbers.txt anew")

const root = "../.."

// What is committed must be what the generator makes, and no file more.
func TestGeneratedCodeIsCommitted(t *testing.T) {
	made, err := generate(t.Context(), root)
	if err != nil {
		t.Fatal(err)
	}
	committed, err := filepath.Glob(filepath.Join(root, out, "*.pb.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range committed {
		if _, ok := made[name]; !ok {
			t.Errorf("%s is committed and nothing makes it; delete it", name)
		}
	}
	for name, text := range made {
		if is, err := os.ReadFile(name); err != nil || string(is) != text {
			t.Errorf("%s is not what its .proto file says (%v); go run ./scripts/protogen", name, err)
		}
	}
}

// Reflection and other programs that use the CloudEvents SDK need the imports to be the files that everyone registers.
func TestImportsAreThoseOfEveryone(t *testing.T) {
	imports := millracev1.File_millrace_v1_events_proto.Imports()
	for i := range imports.Len() {
		if f := imports.Get(i); f.IsPlaceholder() {
			t.Errorf("%s is not the path of a registered file", f.Path())
		}
	}
	e := (&millracev1.Published{}).ProtoReflect().Descriptor().ParentFile()
	if e.Package() != "millrace.v1" {
		t.Errorf("package %s", e.Package())
	}
}

func TestLint(t *testing.T) {
	files, err := compile(t.Context(), root)
	if err != nil {
		t.Fatal(err)
	}
	for _, fault := range lint(files) {
		t.Error(fault)
	}
}

// Each rule finds what it is for.
func TestLintFinds(t *testing.T) {
	files, err := compile(t.Context(), "testdata/bad")
	if err != nil {
		t.Fatal(err)
	}
	said := strings.Join(lint(files), "\n")
	for _, want := range []string{
		`millrace.bad: want the package millrace.v1, as its folder says, with a version`,
		`bad_message: want a name like OrderCreated`,
		`bad_message.Number: want a name like order_id`,
		`bad_message.Number: has no comment`,
		`Colour: its value 0 is RED; want COLOUR_UNSPECIFIED`,
		`Colour.green: want a name like COLOUR_GREEN`,
		`Bad.Get: takes bad_message; want GetRequest`,
		`Bad.Get: returns bad_message; want GetResponse`,
		`Bad: has no comment`,
		`Bad.Get: has no comment`,
		`bad.proto: go_package is "x"`,
		`bad_message.names: its comment`,
		`Bad.Get: returns bad_message, and so does Get`,
	} {
		if !strings.Contains(said, want) {
			t.Errorf("lint does not say %q; it says\n%s", want, said)
		}
	}
}

// The numbers of what was released are its wire format and stay for ever: what is in the list may not change or go. New
// fields are added to it by go test ./scripts/protogen -run Numbers -update.
func TestNumbersStay(t *testing.T) {
	files, err := compile(t.Context(), root)
	if err != nil {
		t.Fatal(err)
	}
	is := numbers(files)
	const list = "testdata/numbers.txt"
	if *update {
		if err := os.WriteFile(list, []byte(strings.Join(is, "\n")+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(list)
	if err != nil {
		t.Fatal(err)
	}
	was := strings.Split(strings.TrimSpace(string(text)), "\n")
	for _, line := range was {
		if !slices.Contains(is, line) {
			t.Errorf("%q was committed and is not so any more: clients that exist would misread it. Give a new field a new number, and let the old one stay", line)
		}
	}
	for _, line := range is {
		if !slices.Contains(was, line) {
			t.Errorf("%q is new; go test ./scripts/protogen -run Numbers -update", line)
		}
	}
}

// numbers lists everything that the wire format is made of.
func numbers(files linker.Files) (list []string) {
	for _, f := range files {
		eachMessage(f.Messages(), func(m protoreflect.MessageDescriptor) {
			for i := range m.Fields().Len() {
				d := m.Fields().Get(i)
				of := d.Kind().String()
				if d.Message() != nil {
					of = string(d.Message().FullName())
				} else if d.Enum() != nil {
					of = string(d.Enum().FullName())
				}
				one := ""
				if o := d.ContainingOneof(); o != nil {
					one = " in " + string(o.Name())
				}
				list = append(list, fmt.Sprintf("%s = %d %s %s%s", d.FullName(), d.Number(), d.Cardinality(), of, one))
			}
		})
		for i := range f.Enums().Len() {
			for j, e := 0, f.Enums().Get(i); j < e.Values().Len(); j++ {
				v := e.Values().Get(j)
				list = append(list, fmt.Sprintf("%s.%s = %d", e.FullName(), v.Name(), v.Number()))
			}
		}
		for i := range f.Services().Len() {
			for j, s := 0, f.Services().Get(i); j < s.Methods().Len(); j++ {
				m := s.Methods().Get(j)
				list = append(list, fmt.Sprintf("%s (%s stream=%t) (%s stream=%t)", m.FullName(), m.Input().FullName(), m.IsStreamingClient(), m.Output().FullName(), m.IsStreamingServer()))
			}
		}
	}
	slices.Sort(list)
	return list
}
