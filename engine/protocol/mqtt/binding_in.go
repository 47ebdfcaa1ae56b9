package mqtt

import (
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/millrace/millrace/engine/access"
	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/engine/mqttname"
	"github.com/mochi-mqtt/server/v2/packets"
)

// An intake makes events of PUBLISH packets, many for one commit, in memory that it uses again. It is for one goroutine.
type intake struct {
	pieces []string // that the wildcards of a mapping took
	text   []byte   // what was made of them, for all events since reset
}

// reset says that the events which were taken are not used any more.
func (in *intake) reset() { in.text = in.text[:0] }

// take makes ev of a PUBLISH whose topic name is there (an alias has been replaced) and says which mapping of n leads it
// where. ev borrows pk and in until reset; its Extensions are used again. An event without id, source, type or time gets
// them where it is published, and is valid then. A message that is not taken is errUnmapped, errName, errPayload,
// event.ErrInvalid or event.ErrTooLarge. It allocates nothing for a message that is no CloudEvent and has no properties
// but its content type and user properties.
func (in *intake) take(ev *event.Event, pk *packets.Packet, n *Names, l event.Limits, now time.Time) (*Mapping, error) {
	*ev = event.Event{Extensions: ev.Extensions[:0]}
	if err := mqttname.CheckName(pk.TopicName); err != nil {
		return nil, fmt.Errorf("%w: %w", errName, err)
	}
	m, pieces, ok := n.Route(pk.TopicName, in.pieces)
	in.pieces = pieces
	if !ok {
		return nil, unmapped(pk.TopicName)
	}
	plain, err := in.content(ev, pk, m, l)
	if err != nil {
		return m, err
	}
	in.mapped(ev, m)
	if err := in.properties(ev, pk, plain, now); err != nil {
		return m, err
	}
	return m, validate(ev, l)
}

// unmapped says that a name fits no filter.
func unmapped(name string) error {
	hint := `one of "#" takes every name`
	if strings.HasPrefix(name, "$") { // [MQTT-4.7.2-1]
		hint = `of a name that begins with "$" the first level has to be in the filter, and no wildcard takes it`
	}
	return event.Bad(errUnmapped, "topic name", fmt.Sprintf("%.200q fits no filter under mqtt in the rules; %s", name, hint))
}

// mayPublish asks whether who speaks may publish a message that took made err of and that m leads on. It is asked of what is
// not taken too: where he may not see the topic he learns what he would of a name that no filter fits, and nothing of the
// mapping, which is somebody else's.
func mayPublish(caller Caller, name string, m *Mapping, err error) error {
	if m == nil {
		return err
	}
	switch denied := caller.May(access.Publish, access.Topic, m.Topic); {
	case errors.Is(denied, event.ErrNotFound):
		return unmapped(name)
	case denied != nil:
		return denied
	}
	return err
}

// content reads what is in the message; plain says that it is no CloudEvent.
func (in *intake) content(ev *event.Event, pk *packets.Packet, m *Mapping, l event.Limits) (plain bool, err error) {
	typ := pk.Properties.ContentType
	version, declared := user(pk, "specversion")
	switch {
	case len(typ) >= len(cloudEvents) && strings.EqualFold(typ[:len(cloudEvents)], cloudEvents):
		if media, charset := mediaType(typ); media != cloudEvents+"+json" || charset != "" && !strings.EqualFold(charset, "utf-8") {
			return false, event.Bad(errPayload, "content type", fmt.Sprintf("%.80q is not taken; of CloudEvents formats there is %s+json in UTF-8", typ, cloudEvents))
		}
		return false, structuredEvent(ev, pk.Payload, l)
	case typ == "" && m.CloudEvents && !declared: // MQTT 3.1.1 is always structured, in JSON (binding, 3)
		return false, structuredEvent(ev, pk.Payload, l)
	case declared && version != "1.0":
		return false, event.Invalid("specversion", fmt.Sprintf("is %.60q; this router takes 1.0", version))
	case declared:
		if err := binaryEvent(ev, pk); err != nil {
			return false, err
		}
	default:
		plainEvent(ev, pk)
	}
	return !declared, setData(ev, pk, declared)
}

func structuredEvent(ev *event.Event, doc []byte, l event.Limits) error {
	if err := event.ParseStructured(doc, l, ev); err != nil {
		return fmt.Errorf("payload: %w: %w", errPayload, err)
	}
	ev.ClientID = true
	ev.Extensions = slices.DeleteFunc(ev.Extensions, func(a event.Attribute) bool {
		return a.Name == TopicExtension || a.Name == plainExtension || a.Name == formatExtension || isMade(a.Name)
	})
	return nil
}

// binaryEvent reads the attributes of a CloudEvent in binary mode (binding, 3.1.3). User properties that are no attributes
// are left out: other parties on the way add such.
func binaryEvent(ev *event.Event, pk *packets.Packet) error {
	for _, p := range pk.Properties.User {
		at := attribute(ev, p.Key)
		switch {
		case at != nil && *at != "":
			return event.Invalid(p.Key, "is given twice")
		case at != nil && p.Val == "":
			return event.Invalid(p.Key, "is empty; give it a value or leave it out")
		case at != nil:
			*at = p.Val
		case isExtension(p.Key):
			ev.Extensions = append(ev.Extensions, event.Attribute{Name: p.Key, Value: p.Val})
		}
	}
	for _, x := range [...]struct{ name, value string }{{"id", ev.ID}, {"source", ev.Source}, {"type", ev.Type}} {
		if x.value == "" {
			return event.Invalid(x.name, "is missing; a CloudEvent, which user property specversion declares, has id, source and type")
		}
	}
	ev.ClientID = true
	if pk.Properties.ContentType != "" { // the user property repeats it, as in the binding's example
		ev.DataContentType = ""
	}
	return nil
}

// plainEvent keeps the user properties of a message that is no CloudEvent as extensions, the first of each name.
func plainEvent(ev *event.Event, pk *packets.Packet) {
	for _, p := range pk.Properties.User {
		switch {
		case p.Key == "traceparent":
			if ev.TraceParent == "" {
				ev.TraceParent = p.Val
			}
		case attribute(ev, p.Key) != nil || !isExtension(p.Key) || len(ev.Extensions) >= maxUserProperties:
		case !slices.ContainsFunc(ev.Extensions, func(a event.Attribute) bool { return a.Name == p.Key }):
			ev.Extensions = append(ev.Extensions, event.Attribute{Name: p.Key, Value: p.Val})
		}
	}
}

// maxUserProperties of a message that is no CloudEvent are kept.
const maxUserProperties = 100

// setData takes the payload as the event's data, as publishing over HTTP does with a body.
func setData(ev *event.Event, pk *packets.Packet, declared bool) error {
	typ, data := pk.Properties.ContentType, pk.Payload
	if typ == "" {
		typ = ev.DataContentType
	}
	if pk.Properties.PayloadFormat == 1 && !utf8.Valid(data) { // 3.3.2.3.2
		return event.Bad(errPayload, "payload", "is not UTF-8, which its payload format indicator says it is")
	}
	switch {
	case event.IsJSON(typ):
		if len(data) == 0 {
			ev.DataContentType = typ
			return nil
		}
		err := event.CheckJSON(data)
		switch {
		case err == nil && declared: // of a CloudEvent without datacontenttype it is known
			ev.Data = data
		case err == nil:
			ev.DataContentType, ev.Data = "application/json", data
		case typ != "":
			return fmt.Errorf("payload: %w: %w", errPayload, err)
		case utf8.Valid(data): // nothing was said of it
			ev.DataContentType, ev.Data = "text/plain", data
		default:
			ev.DataContentType, ev.Data, ev.Binary = "application/octet-stream", data, true
		}
		if typ != "" {
			ev.DataContentType = typ
		}
	default:
		ev.DataContentType, ev.Data = typ, data
		if data == nil {
			ev.Data = []byte{}
		}
		ev.Binary = pk.Properties.PayloadFormat != 1 && (!isText(typ) || !utf8.Valid(data))
	}
	return nil
}

// isText reports whether a content type is that of text.
func isText(contentType string) bool {
	media, _ := mediaType(contentType)
	switch media {
	case "application/javascript", "application/yaml", "application/x-yaml", "application/toml", "application/sql", "application/graphql":
		return true
	}
	return strings.HasPrefix(media, "text/") || strings.HasSuffix(media, "+xml") || strings.HasSuffix(media, "/xml")
}

// mediaType is a content type without parameters, in lower case, and its charset.
func mediaType(contentType string) (media, charset string) {
	media, params, _ := strings.Cut(contentType, ";")
	for p := range strings.SplitSeq(params, ";") {
		if k, v, _ := strings.Cut(p, "="); strings.EqualFold(strings.TrimSpace(k), "charset") {
			charset = strings.Trim(strings.TrimSpace(v), `"`)
		}
	}
	return strings.ToLower(strings.TrimSpace(media)), charset
}

// mapped gives ev those attributes that it does not have and the mapping makes of the name.
func (in *intake) mapped(ev *event.Event, m *Mapping) {
	for _, x := range [...]struct {
		t  *mqttname.Template
		to *string
	}{{&m.typ, &ev.Type}, {&m.subject, &ev.Subject}, {&m.key, &ev.PartitionKey}, {&m.source, &ev.Source}} {
		if *x.to == "" && !x.t.IsZero() {
			*x.to = in.fill(x.t)
		}
	}
}

func (in *intake) fill(t *mqttname.Template) string {
	if text, ok := t.Literal(); ok {
		return text
	}
	if n := t.Whole(); n > 0 {
		return in.pieces[n-1]
	}
	from := len(in.text)
	in.text = t.AppendPieces(in.text, in.pieces)
	return borrow(in.text[from:])
}

// properties keeps what MQTT says of the message.
func (in *intake) properties(ev *event.Event, pk *packets.Packet, plain bool, now time.Time) error {
	p := &pk.Properties
	set(ev, TopicExtension, event.String, pk.TopicName)
	switch {
	case plain && p.ContentType == "":
		set(ev, plainExtension, event.String, untyped)
	case plain:
		set(ev, plainExtension, event.String, typed)
	}
	if p.PayloadFormat == 1 {
		set(ev, formatExtension, event.Integer, "1")
	}
	if p.ResponseTopic != "" {
		if err := mqttname.CheckName(p.ResponseTopic); err != nil { // [MQTT-3.3.2-14]
			return event.At("response topic", err)
		}
		set(ev, responseExtension, event.String, p.ResponseTopic)
	}
	if len(p.CorrelationData) > 0 {
		from := len(in.text)
		in.text = base64.StdEncoding.AppendEncode(in.text, p.CorrelationData)
		set(ev, correlationExt, event.Bytes, borrow(in.text[from:]))
	}
	if p.MessageExpiryInterval > 0 {
		from := len(in.text)
		in.text = now.UTC().Add(time.Duration(p.MessageExpiryInterval)*time.Second).AppendFormat(in.text, expiryFormat)
		set(ev, expiryExtension, event.Timestamp, borrow(in.text[from:]))
	}
	return nil
}

const expiryFormat = "2006-01-02T15:04:05.000Z07:00"

// set sets an extension, which MQTT's own fields do in place of what the event brought.
func set(ev *event.Event, name string, kind event.Kind, value string) {
	for i := range ev.Extensions {
		if a := &ev.Extensions[i]; a.Name == name {
			a.Kind, a.Value = kind, value
			return
		}
	}
	ev.Extensions = append(ev.Extensions, event.Attribute{Name: name, Kind: kind, Value: value})
}

// validate is Validate of the event with what it gets where it is published: one that is wrong is refused here, by itself,
// rather than with all that are stored with it.
func validate(ev *event.Event, l event.Limits) error {
	given := *ev
	for _, at := range [...]*string{&ev.ID, &ev.Source, &ev.Type} {
		if *at == "" {
			*at = "-"
		}
	}
	err := ev.Validate(l)
	ev.ID, ev.Source, ev.Type = given.ID, given.Source, given.Type
	return err
}
