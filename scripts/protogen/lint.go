package main

import (
	"fmt"
	"path"
	"regexp"
	"strings"

	"github.com/bufbuild/protocompile/linker"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
)

var (
	pascal     = regexp.MustCompile(`^([A-Z][a-z0-9]*)+$`)
	lowerSnake = regexp.MustCompile(`^[a-z][a-z0-9]*(_[a-z0-9]+)*$`)
	upperSnake = regexp.MustCompile(`^[A-Z][A-Z0-9]*(_[A-Z0-9]+)*$`)
	versioned  = regexp.MustCompile(`\.v[1-9][0-9]*$`)
	boundary   = regexp.MustCompile(`([a-z0-9])([A-Z])`)
)

// linter collects faults. Its rules are the standard ones of buf (https://buf.build/docs/lint/rules), and that everything
// has a comment.
type linter struct{ faults []string }

func (l *linter) say(d protoreflect.Descriptor, format string, args ...any) {
	name := string(d.Name())
	if p := d.Parent(); p != nil {
		if _, file := p.(protoreflect.FileDescriptor); !file {
			name = string(p.Name()) + "." + name
		}
	}
	l.faults = append(l.faults, name+": "+fmt.Sprintf(format, args...))
}

// lint says what is wrong with files, nothing where nothing is.
func lint(files linker.Files) []string {
	l := &linter{}
	used := map[protoreflect.FullName]string{}
	for _, f := range files {
		l.file(f)
		eachMessage(f.Messages(), l.message)
		for i := range f.Enums().Len() {
			l.enum(f.Enums().Get(i))
		}
		for i := range f.Services().Len() {
			l.service(f.Services().Get(i), used)
		}
	}
	return l.faults
}

func eachMessage(ms protoreflect.MessageDescriptors, do func(protoreflect.MessageDescriptor)) {
	for i := range ms.Len() {
		do(ms.Get(i))
		eachMessage(ms.Get(i).Messages(), do)
	}
}

func (l *linter) file(f protoreflect.FileDescriptor) {
	say := func(format string, args ...any) {
		l.faults = append(l.faults, path.Base(f.Path())+": "+fmt.Sprintf(format, args...))
	}
	want := strings.ReplaceAll(path.Dir(f.Path()), "/", ".")
	if string(f.Package()) != want || !versioned.MatchString(want) {
		say("%s: want the package %s, as its folder says, with a version", f.Package(), want)
	}
	if f.Syntax() != protoreflect.Proto3 {
		say("is not proto3")
	}
	if pkg := f.Options().(*descriptorpb.FileOptions).GetGoPackage(); pkg != "github.com/millrace/millrace/sdk/client/millracev1;millracev1" {
		say("go_package is %q; want that of its neighbours", pkg)
	}
	if base := strings.TrimSuffix(path.Base(f.Path()), ".proto"); !lowerSnake.MatchString(base) {
		say("want a name like order_events.proto")
	}
}

func (l *linter) comment(d protoreflect.Descriptor) {
	text := strings.TrimSpace(d.ParentFile().SourceLocations().ByDescriptor(d).LeadingComments)
	switch {
	case text == "":
		l.say(d, "has no comment")
	case !strings.HasSuffix(text, "."):
		l.say(d, "its comment %.40q is no sentence; end it with a full stop", text)
	}
}

func (l *linter) message(m protoreflect.MessageDescriptor) {
	l.comment(m)
	if !pascal.MatchString(string(m.Name())) {
		l.say(m, "want a name like OrderCreated")
	}
	for i := range m.Fields().Len() {
		f := m.Fields().Get(i)
		l.comment(f)
		if !lowerSnake.MatchString(string(f.Name())) {
			l.say(f, "want a name like order_id")
		}
	}
	for i := range m.Oneofs().Len() {
		o := m.Oneofs().Get(i)
		if o.IsSynthetic() {
			continue
		}
		l.comment(o)
		if !lowerSnake.MatchString(string(o.Name())) {
			l.say(o, "want a name like order_id")
		}
	}
}

func (l *linter) enum(e protoreflect.EnumDescriptor) {
	l.comment(e)
	if !pascal.MatchString(string(e.Name())) {
		l.say(e, "want a name like OrderState")
	}
	prefix := strings.ToUpper(boundary.ReplaceAllString(string(e.Name()), "${1}_${2}")) + "_"
	if e.Options().(*descriptorpb.EnumOptions).GetAllowAlias() {
		l.say(e, "allows aliases; one number has one name")
	}
	for i := range e.Values().Len() {
		v := e.Values().Get(i)
		l.comment(v)
		if v.Number() == 0 && string(v.Name()) != prefix+"UNSPECIFIED" {
			l.say(e, "its value 0 is %s; want %sUNSPECIFIED, which nobody meant", v.Name(), prefix)
		}
		if !strings.HasPrefix(string(v.Name()), prefix) || !upperSnake.MatchString(string(v.Name())) {
			l.faults = append(l.faults, fmt.Sprintf("%s.%s: want a name like %sGREEN", e.Name(), v.Name(), prefix))
		}
	}
}

// service checks that no two calls share a message, so that each can grow by itself.
func (l *linter) service(s protoreflect.ServiceDescriptor, used map[protoreflect.FullName]string) {
	l.comment(s)
	if !pascal.MatchString(string(s.Name())) {
		l.say(s, "want a name like Orders")
	}
	for i := range s.Methods().Len() {
		m := s.Methods().Get(i)
		l.comment(m)
		if !pascal.MatchString(string(m.Name())) {
			l.say(m, "want a name like CreateOrder")
		}
		for _, x := range []struct {
			verb, want string
			is         protoreflect.MessageDescriptor
		}{{"takes", string(m.Name()) + "Request", m.Input()}, {"returns", string(m.Name()) + "Response", m.Output()}} {
			if string(x.is.Name()) != x.want {
				l.say(m, "%s %s; want %s", x.verb, x.is.Name(), x.want)
			}
			if other := used[x.is.FullName()]; other != "" {
				l.say(m, "%s %s, and so does %s", x.verb, x.is.Name(), other)
			}
			used[x.is.FullName()] = string(m.Name())
		}
	}
}
