package rules

import (
	"encoding/json"
	"maps"
	"reflect"
	"slices"
	"strings"
)

// sinkAbout is what the ways to deliver are for.
var sinkAbout = map[string]string{
	"webhook": "Sent by HTTP POST, signed where secrets are given.",
}

// withSinks adds deliver, and the options of the sinks that a program has.
func withSinks(all []described, sinks map[string]SinkKind) []described {
	deliver := described{name: "deliver", at: "subscriptions.NAME.deliver", one: true, about: "Exactly one way to deliver.", keys: map[string]keyDoc{
		"pull":   {is: mappingNamed("pull"), about: "Leased to whoever pulls."},
		"mqtt":   {is: mappingNamed("names"), about: "Appended to `NAME.out`, which MQTT clients read under names of their own."},
		"stream": {is: mappingNamed("stream"), about: "Appended to `NAME.out`, which is read as a stream."},
		"topic":  {is: nameType(), about: "Appended to this topic. Topics that are delivered into each other all round are refused."},
	}}
	names := slices.Sorted(maps.Keys(sinks))
	deliver.shape.keys = append(slices.Clone(names), "mqtt", "pull", "stream", "topic")
	var options []described
	for _, name := range names {
		about := sinkAbout[name]
		if about == "" {
			about = "Sent to a " + name + "."
		}
		deliver.keys[name] = keyDoc{is: mappingNamed("sink-" + name), about: about}
		options = describeStruct(options, "sink-"+name, deliver.at+"."+name, about, sinks[name].options, sinks[name].defaults)
	}
	at := slices.IndexFunc(all, func(d described) bool { return d.name == "pull" })
	return slices.Insert(all, at, append([]described{deliver}, options...)...)
}

// describeStruct adds the options of a sink, and those in them.
func describeStruct(all []described, name, at, about string, t reflect.Type, defaults reflect.Value) []described {
	d := described{name: name, at: at, about: about, keys: map[string]keyDoc{}}
	var below []described
	yamlFields(t, func(i int, key string) {
		f, v := t.Field(i), reflect.Value{}
		if defaults.IsValid() && defaults.Kind() == reflect.Struct {
			v = defaults.Field(i)
		}
		doc := keyDoc{about: f.Tag.Get("about"), must: f.Tag.Get("rules") == "required"}
		doc.is = optionType(f.Type, f.Tag.Get("enum"), func(t reflect.Type) string {
			below = describeStruct(below, name+"-"+key, at+"."+key, doc.about, t, v)
			return name + "-" + key
		})
		if f.Tag.Get("rules") == "filter" {
			doc.is = plainText("filter")
		}
		if v.IsValid() && isSingle(v) && (!v.IsZero() || v.Kind() == reflect.Bool) {
			std := encode(v, nil, secretKey(key)).scalarJSON()
			doc.std, doc.absent = json.RawMessage(std), strings.Trim(string(std), `"`)
		}
		d.shape.keys, d.keys[key] = append(d.shape.keys, key), doc
	})
	d.null = strings.Count(name, "-") == 1 && !slices.ContainsFunc(d.shape.keys, func(key string) bool { return d.keys[key].must })
	return append(append(all, d), below...)
}

func isSingle(v reflect.Value) bool {
	switch v.Kind() {
	case reflect.Struct, reflect.Map, reflect.Slice, reflect.Pointer, reflect.Interface:
		return false
	}
	return true
}

// optionType says how an option is written; nested is called with structs and returns the names of their mappings.
func optionType(t reflect.Type, enum string, nested func(reflect.Type) string) valueType {
	switch {
	case t == durationType:
		return duration("")
	case reflect.PointerTo(t).Implements(textType):
		return plainText("text")
	case enum != "":
		return oneOf(strings.Split(enum, ",")...)
	}
	switch t.Kind() {
	case reflect.Struct:
		return mappingNamed(nested(t))
	case reflect.Pointer:
		return optionType(t.Elem(), "", nested)
	case reflect.Slice:
		return listOf(optionType(t.Elem(), "", nested))
	case reflect.Map:
		return mapOf(optionType(t.Elem(), "", nested))
	case reflect.Bool:
		return boolean()
	case reflect.Int64:
		return sizeType("")
	case reflect.Float32, reflect.Float64:
		return numberOf(0, 0)
	case reflect.String:
		return plainText("text")
	}
	return anyInteger()
}
