package abi

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/plugins"
)

var le = binary.LittleEndian

// Mode is what a convention that speaks JSON hands to its guests and takes from them.
type Mode uint8

// The modes.
const (
	Events Mode = iota // a CloudEvent in structured mode; one answer or an array of them comes back
	Data               // the event's data; the new data comes back
)

// ModeOf reads the mode from a function's configuration.
func ModeOf(key, value string) (Mode, error) {
	switch value {
	case "", "event":
		return Events, nil
	case "data":
		return Data, nil
	}
	return 0, fmt.Errorf("config %s is %.60q; want event (a CloudEvent in, answers out) or data (its data in, new data out)", key, value)
}

// AppendLine appends r as one line of JSON, without the line's end.
func AppendLine(dst []byte, m Mode, r event.Record) []byte {
	start := len(dst)
	if dst = r.AppendStructured(dst); m == Data {
		at := dataMember(dst[start:])
		dst = append(dst[:start], at...)
	}
	// Outside of strings, where a line's end cannot stand as it is, it is white space like another.
	for i := start; i < len(dst); i++ {
		if dst[i] == '\n' || dst[i] == '\r' {
			dst[i] = ' '
		}
	}
	return dst
}

// dataMember is the value of the last member of a structured event if that is its data; data_base64 as well.
func dataMember(doc []byte) []byte {
	found := []byte("null")
	_ = members(doc, func(name string, value []byte) error { // the callback has no errors
		if name == "data" || name == "data_base64" {
			found = value
		}
		return nil
	})
	return found
}

// Answers turns what guests say in JSON into results. Its zero value is ready; a goroutine at a time uses it.
type Answers struct {
	first   int // of the results of the run
	scratch event.Event
	members []member
}

type member struct {
	name  string
	value []byte
}

// Begin begins a run, whose results will be appended to out.
func (a *Answers) Begin(out *plugins.Outcome) { a.first = len(out.Results) }

// Add appends what doc, one JSON text, says of event i of b to out. With the mode Data it is the event's new data,
// null to drop it; else one answer or an array of them:
//
//	{"verdict":"pass"}   {"verdict":"drop"}   {"verdict":"retry","delay":"1500ms"}
//	{"verdict":"reject","code":422,"reason":"…"}
//	{"verdict":"reply","status":200,"contentType":"text/plain","data":"…"}
//	{"verdict":"emit","type":"…","data":{…}}   inherits what is not given, null removes; "topic" sends it there
//	{"specversion":"1.0",…}                    an event of its own
//	null, []                                   drop
//
// Doc is not kept. An error is a *plugins.GuestError at the event.
func (a *Answers) Add(b *plugins.Batch, i int, m Mode, doc []byte, out *plugins.Outcome) error {
	err := event.CheckJSON(doc)
	if err == nil {
		c := answering{Answers: a, b: b, i: i, in: b.Event(i), out: out, said: About(out)}
		err = c.say(m, bytes.TrimSpace(doc))
	}
	if err != nil {
		return plugins.BadOutput(i, "the answer to event %d: %w", i, err)
	}
	return nil
}

// Replace appends an event like event i of b with other data, which is copied.
func (a *Answers) Replace(b *plugins.Batch, i int, data []byte, out *plugins.Outcome) error {
	c := answering{Answers: a, b: b, i: i, in: b.Event(i), out: out, said: About(out)}
	if data == nil {
		data = []byte{}
	}
	if err := c.add(plugins.Result{Verdict: plugins.Emit, Flags: plugins.Inherit, Data: c.keep(data)}); err != nil {
		return plugins.BadOutput(i, "the output for event %d: %w", i, err)
	}
	return nil
}

// An answering reads what is said of one event.
type answering struct {
	*Answers
	b    *plugins.Batch
	i    int
	in   event.Record
	out  *plugins.Outcome
	said Said
}

func (c *answering) say(m Mode, doc []byte) error {
	drop := plugins.Result{Verdict: plugins.Drop}
	switch {
	case doc[0] == 'n':
		return c.add(drop)
	case m == Data:
		data, err := dataOf(doc, c.in.Attr(event.TagDataContentType))
		if err != nil {
			return err
		}
		return c.add(plugins.Result{Verdict: plugins.Emit, Flags: plugins.Inherit, Data: c.keep(data)})
	case doc[0] != '[':
		return c.answer(doc)
	}
	if err := elements(doc, c.answer); err != nil {
		return err
	}
	if c.said.Nothing() {
		return c.add(drop)
	}
	return nil
}

// keep copies p to where the bytes of results are; nil stays nil.
func (c *answering) keep(p []byte) []byte {
	if p == nil {
		return nil
	}
	at := len(c.out.Buf)
	c.out.Buf = append(c.out.Buf, p...)
	return c.out.Buf[at:len(c.out.Buf):len(c.out.Buf)]
}

func (c *answering) add(r plugins.Result) error {
	if len(c.out.Results)-c.first >= c.b.MaxResults {
		return fmt.Errorf("more than %d results of one call", c.b.MaxResults)
	}
	r.Index = c.b.Index(c.i)
	if err := c.said.Add(&r, c.out); err != nil {
		return err
	}
	if r.Verdict == plugins.Emit {
		if err := CheckEmit(&r, c.in, &c.scratch); err != nil {
			return fmt.Errorf("EMIT: %w", err)
		}
	}
	c.out.Results = append(c.out.Results, r)
	return nil
}

// answer reads one answer.
func (c *answering) answer(doc []byte) error {
	if doc[0] == 'n' {
		return c.add(plugins.Result{Verdict: plugins.Drop})
	}
	if doc[0] != '{' {
		return fmt.Errorf("is %.60q; want an object with a verdict, an event with specversion, or null to drop", doc)
	}
	c.members = c.members[:0]
	verdict, whole := "", false
	err := members(doc, func(name string, value []byte) error {
		switch name {
		case "specversion":
			whole = true
		case "verdict":
			if value[0] != '"' || verdict != "" {
				return fmt.Errorf("verdict is %.60q; want one of pass, emit, drop, retry, reject, reply", value)
			}
			verdict = text(value)
			return nil
		}
		c.members = append(c.members, member{name, value})
		return nil
	})
	switch {
	case err != nil:
		return err
	case verdict != "" && whole:
		return fmt.Errorf("has both verdict and specversion; an event of its own has no verdict")
	case whole:
		return c.whole(doc)
	}
	switch verdict {
	case "pass":
		return c.decide(plugins.Pass)
	case "drop":
		return c.decide(plugins.Drop)
	case "retry":
		return c.decide(plugins.Retry, "delay")
	case "reject":
		return c.decide(plugins.Reject, "code", "reason")
	case "reply":
		return c.reply()
	case "emit":
		return c.emit()
	case "":
		return fmt.Errorf("has neither verdict nor specversion: %.200q", doc)
	}
	return fmt.Errorf("verdict is %.60q; want one of pass, emit, drop, retry, reject, reply", verdict)
}

// decide reads an answer that has none but these members.
func (c *answering) decide(v plugins.Verdict, may ...string) error {
	r := plugins.Result{Verdict: v}
	for _, m := range c.members {
		if !slices.Contains(may, m.name) {
			return fmt.Errorf("%s with a member %.60q; it may have %q", v, m.name, may)
		}
		var err error
		switch m.name {
		case "delay":
			r.Arg, err = delayOf(m.value)
		case "code":
			r.Arg, err = number(m)
		case "reason":
			if m.value[0] != '"' {
				return fmt.Errorf("reason is %.60q; want a string", m.value)
			}
			r.Data = c.keep([]byte(text(m.value)))
		}
		if err != nil {
			return err
		}
	}
	return c.add(r)
}

func number(m member) (uint32, error) {
	n, err := strconv.ParseUint(string(m.value), 10, 32)
	if err != nil {
		return 0, fmt.Errorf("%s is %.60q; want an integer of 32 bits", m.name, m.value)
	}
	return uint32(n), nil
}

func delayOf(value []byte) (uint32, error) {
	if value[0] == '"' {
		d, err := time.ParseDuration(text(value))
		if ms := d.Milliseconds(); err == nil && ms >= 0 && ms <= math.MaxUint32 {
			return uint32(ms), nil
		}
	}
	return 0, fmt.Errorf("delay is %.60q; want a string such as \"1500ms\" or \"2m\", at most 1193h", value)
}

func (c *answering) reply() error {
	r := plugins.Result{Verdict: plugins.Reply}
	contentType := ""
	for _, m := range c.members {
		if m.name == "contentType" {
			if m.value[0] != '"' {
				return fmt.Errorf("contentType is %.60q; want a string", m.value)
			}
			contentType = text(m.value)
		}
	}
	for _, m := range c.members {
		var err error
		switch m.name {
		case "status":
			r.Arg, err = number(m)
		case "data":
			r.Data, err = dataOf(m.value, contentType)
		case "data_base64":
			r.Data, err = base64Of(m.value)
		case "contentType":
		default:
			err = fmt.Errorf("REPLY with a member %.60q; it may have status, contentType, and data or data_base64", m.name)
		}
		if err != nil {
			return err
		}
	}
	if contentType != "" {
		at := len(c.out.Buf)
		c.out.Buf = AppendAttr(c.out.Buf, event.Attr{Tag: event.TagDataContentType, Value: contentType})
		r.Attrs, r.Count = c.out.Buf[at:len(c.out.Buf):len(c.out.Buf)], 1
	}
	r.Data = c.keep(r.Data)
	return c.add(r)
}

// emit reads an event that inherits from the input what it does not say.
func (c *answering) emit() error {
	r := plugins.Result{Verdict: plugins.Emit, Flags: plugins.Inherit | plugins.SameData}
	contentType := c.in.Attr(event.TagDataContentType)
	var data, coded []byte
	at := len(c.out.Buf)
	for _, m := range c.members {
		switch m.name {
		case "data":
			data = m.value
			continue
		case "data_base64":
			coded = m.value
			continue
		case "datacontenttype":
			contentType = ""
			if m.value[0] == '"' {
				contentType = text(m.value)
			}
		}
		a, err := attribute(m)
		if err != nil {
			return err
		}
		c.out.Buf = AppendAttr(c.out.Buf, a)
		r.Count++
	}
	r.Attrs = c.out.Buf[at:len(c.out.Buf):len(c.out.Buf)]
	var err error
	switch {
	case data != nil && coded != nil:
		return fmt.Errorf("EMIT with both data and data_base64")
	case data != nil:
		r.Flags = plugins.Inherit
		r.Data, err = dataOf(data, contentType)
	case coded != nil:
		r.Flags = plugins.Inherit
		r.Data, err = base64Of(coded)
	}
	if err != nil {
		return err
	}
	r.Data = c.keep(r.Data)
	return c.add(r)
}

// whole reads an event of its own.
func (c *answering) whole(doc []byte) error {
	e := &c.scratch
	if err := event.ParseStructured(doc, outputLimits, e); err != nil {
		return fmt.Errorf("EMIT: %w", err)
	}
	r := plugins.Result{Verdict: plugins.Emit}
	at := len(c.out.Buf)
	for _, a := range []event.Attr{
		{Tag: event.TagID, Value: e.ID}, {Tag: event.TagSource, Value: e.Source}, {Tag: event.TagType, Value: e.Type},
		{Tag: event.TagSubject, Value: e.Subject}, {Tag: event.TagDataContentType, Value: e.DataContentType},
		{Tag: event.TagDataSchema, Value: e.DataSchema}, {Tag: event.TagTime, Value: e.Time},
		{Tag: event.TagPartitionKey, Value: e.PartitionKey}, {Tag: event.TagTraceParent, Value: e.TraceParent},
	} {
		if a.Value != "" {
			c.out.Buf = AppendAttr(c.out.Buf, a)
			r.Count++
		}
	}
	for _, x := range e.Extensions {
		c.out.Buf = AppendAttr(c.out.Buf, event.Attr{Kind: x.Kind, Name: x.Name, Value: x.Value})
		r.Count++
	}
	r.Attrs = c.out.Buf[at:len(c.out.Buf):len(c.out.Buf)]
	r.Data = c.keep(e.Data)
	return c.add(r)
}

// attribute reads an attribute of an event; null removes it.
func attribute(m member) (event.Attr, error) {
	a := event.Attr{Name: m.name}
	if m.name == "topic" {
		a = event.Attr{Tag: event.TagTopic}
	}
	switch m.value[0] {
	case '"':
		a.Value = text(m.value)
	case 't', 'f':
		a.Kind, a.Value = event.Boolean, string(m.value)
	case 'n':
		a.Unset = true
	case '{', '[':
		return a, fmt.Errorf("%.60q is %.60q; an attribute is a string, a boolean or an integer: put it into data", m.name, m.value)
	default:
		n, err := strconv.ParseInt(string(m.value), 10, 32)
		if err != nil {
			return a, fmt.Errorf("%.60q is %.60q; a number in an attribute is an integer of 32 bits: write it as a string", m.name, m.value)
		}
		a.Kind, a.Value = event.Integer, strconv.FormatInt(n, 10)
	}
	if m.name == "" || len(m.name) > maxName {
		return a, fmt.Errorf("an attribute has a name of %d bytes; want 1 to %d", len(m.name), maxName)
	}
	return a, nil
}

const maxName = 255

// AppendAttr appends an attribute as results carry it. Names have at most 64 KiB.
func AppendAttr(dst []byte, a event.Attr) []byte {
	n := uint32(len(a.Value))
	if a.Unset {
		n, a.Value = event.NoValue, ""
	}
	dst = append(dst, byte(a.Tag), byte(a.Kind))
	dst = le.AppendUint16(dst, uint16(len(a.Name)))
	dst = le.AppendUint32(dst, n)
	dst = append(append(dst, a.Name...), a.Value...)
	for pad := -(len(a.Name) + len(a.Value)) & 3; pad > 0; pad-- {
		dst = append(dst, 0)
	}
	return dst
}

// dataOf is the data that a JSON value stands for where the content type is this.
func dataOf(value []byte, contentType string) ([]byte, error) {
	switch {
	case event.IsJSON(contentType):
		return value, nil
	case value[0] == '"':
		return []byte(text(value)), nil
	case value[0] == 'n':
		return nil, nil
	}
	return nil, fmt.Errorf("data is %.60q, but datacontenttype is %.60q: want a string, data_base64, or a content type of JSON", value, contentType)
}

func base64Of(value []byte) ([]byte, error) {
	if value[0] != '"' {
		return nil, fmt.Errorf("data_base64 is %.60q; want a string", value)
	}
	b, err := base64.StdEncoding.DecodeString(text(value))
	if err != nil {
		return nil, fmt.Errorf("data_base64 is not base64 (RFC 4648, 4, padded): %w", err)
	}
	return b, nil
}
