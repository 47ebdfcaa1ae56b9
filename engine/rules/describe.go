package rules

import "strings"

// What the keys of rules files mean, once: the JSON Schema for editors and docs/rules-reference.md are made of it. A
// test demands a description of each key of each shape.

// A described mapping is one that stands somewhere in a rules file.
type described struct {
	name  string // in $defs
	at    string // where it stands
	about string
	shape shape
	keys  map[string]keyDoc
	null  bool     // may be left empty
	one   bool     // has exactly one key
	any   []string // has one of these at least
}

// keyDoc is what one key means.
type keyDoc struct {
	is     valueType
	about  string
	absent string // what holds where it is left out, in words
	std    any    // the same as a value, for editors; nil: none
	must   bool
}

// described lists all mappings of rules files, the file itself first.
func describe(sinks map[string]SinkKind, schemes map[string]SchemeKind, bridges BridgeKinds) []described {
	all := []described{
		{name: "file", at: "the file", shape: rulesShape, about: "A rules file, or one of a folder of them.", null: false, keys: map[string]keyDoc{
			"version":       {is: integerOf(1, 1), about: "Of the format.", absent: "1", std: 1},
			"topics":        {is: namedMapping("topic"), about: "Topics by name. One that is only named, by a subscription, as a target or for dead letters, is made with defaults."},
			"functions":     {is: namedMapping("function"), about: "Functions by name: modules of WASM, or scripts."},
			"subscriptions": {is: namedMapping("subscription"), about: "Subscriptions by name: which events of a topic go where, through which functions."},
			"hosts":         {is: mapOf(mappingNamed("host")), about: "Limits of hosts that are sent to, by their names or addresses, with a port or without: what all subscriptions together send to one."},
			"schedules":     {is: namedMapping("schedule"), about: "Schedules by name: events that the router publishes by itself, again and again."},
			"sources":       {is: namedMapping("source"), about: "Sources by name: senders whose webhooks, posted to `/v1/sources/NAME`, become events once they are verified."},
			"bridges":       {is: namedMapping("bridge"), about: "Bridges by name: topics that are forwarded to another router or to an MQTT broker, or brought from another router."},
			"mqtt":          {is: mapOf(mappingNamed("mqtt")), about: "Mappings by their topic filters: what messages become that MQTT clients publish."},
			"tests":         {is: listOf(mappingNamed("test")), about: "What the rules are for; `router rules test` runs them."},
		}},
		{name: "topic", at: "topics.NAME", shape: topicShape, null: true, about: "A topic keeps events until its bounds are reached.", keys: map[string]keyDoc{
			"partitions": {is: integerOf(1, maxPartitions), about: "How many parts the topic has, each with an order of its own; fixed once the topic is made.", absent: "1", std: 1},
			"retain":     {is: mappingNamed("retain"), about: "Past any of these bounds the oldest events leave."},
			"whenFull":   {is: oneOf("drop-oldest", "reject"), about: "What happens at the bounds: `reject` refuses new events while an unfinished subscription would lose one.", absent: "`drop-oldest`; `reject` where it takes dead letters"},
			"dedupe":     {is: duration("1s to 24h"), about: "For how long the same source and id are the same event.", absent: "2m", std: "2m"},
			"schema":     {is: pathOrSchema(), about: "JSON Schema for the data: its path, or the schema itself. Events that fail it are refused, and filters are checked against it. Nothing is fetched: what it refers to stands in it.", absent: "any data"},
			"trace":      {is: either(mappingNamed("trace"), oneOf("none")), about: "What is kept of the way of this topic's events, for `router explain`; `none` for nothing."},
		}},
		{name: "trace", at: "topics.NAME.trace", shape: traceShape, about: "It is kept how each try at each event ended.", keys: map[string]keyDoc{
			"keep":   {is: duration("1s to 30d, or 0s"), about: "For how long; `0s` is not at all.", absent: "24h", std: "24h"},
			"sample": {is: numberOf(0, 1), about: "The share of events that is traced.", absent: "1", std: 1},
		}},
		{name: "retain", at: "topics.NAME.retain, subscriptions.NAME.deliver.stream.retain, subscriptions.NAME.deliver.mqtt.retain", shape: retainShape, about: "How much a topic keeps.", keys: map[string]keyDoc{
			"bytes":  {is: sizeType("at least 1"), about: "Of all partitions together.", absent: "1GiB", std: "1GiB"},
			"age":    {is: duration("1s to 100 years"), about: "Since an event was received.", absent: "7d", std: "7d"},
			"events": {is: integerOf(1, 0), about: "Of all partitions together.", absent: "no bound"},
		}},
		{name: "function", at: "functions.NAME", shape: functionShape, any: []string{"wasm", "js"}, about: "A function takes an event and says what becomes of it.", keys: map[string]keyDoc{
			"wasm":    {is: plainText("path, `sha256:…` or `pushed`"), about: "The module: its path; `sha256:…` of one that the router has; or `pushed`, and the API sets the version."},
			"js":      {is: plainText("path"), about: "In place of `wasm`: the path of a script in JavaScript."},
			"limits":  {is: mappingNamed("limits"), about: "What one call, or one event, may cost."},
			"config":  {is: mapOf(anyScalar()), about: "What the function can read: keys and single values.", absent: "empty"},
			"secrets": {is: mapOf(anyScalar()), about: "The same by another call; never shown or logged. Give references.", absent: "empty"},
			"allow":   {is: mappingNamed("allow"), about: "What the function may do besides computing."},
		}},
		{name: "limits", at: "functions.NAME.limits", shape: limitsShape, about: "Bounds of a function.", keys: map[string]keyDoc{
			"cpu":    {is: duration("1ms to 1m"), about: "Of guest code for one event, what it waits for not counted; a call of many events has ten times that.", absent: "100ms", std: "100ms"},
			"wall":   {is: duration("1ms to 1h"), about: "Of one call in all.", absent: "10s", std: "10s"},
			"memory": {is: sizeType("64KiB to 4GiB"), about: "Of one instance.", absent: "64MiB", std: "64MiB"},
			"output": {is: sizeType("1KiB to 1GiB"), about: "Of one call's results.", absent: "4MiB", std: "4MiB"},
			"fuel":   {is: either(integerOf(1, 0), oneOf("unlimited")), about: "Of one event, in units that are the same for the same event on every machine.", absent: "unlimited", std: "unlimited"},
		}},
		{name: "allow", at: "functions.NAME.allow", shape: allowShape, about: "What a function may do.", keys: map[string]keyDoc{
			"http": {is: listOf(plainText("host")), about: "Hosts that it may call: `api.example.com`, `*.example.com` (all below it), with `:port` where it is not that of the scheme.", absent: "none"},
			"kv":   {is: boolean(), about: "It may keep state.", absent: "false", std: false},
		}},
		{name: "subscription", at: "subscriptions.NAME", shape: subscriptionShape, about: "A subscription brings events of a topic somewhere.", keys: map[string]keyDoc{
			"topic":       {is: nameType(), about: "The topic that is read.", must: true},
			"start":       {is: startType(), about: "Where a new subscription begins; one that exists keeps its place.", absent: "`latest`", std: "latest"},
			"filter":      {is: plainText("filter"), about: "Which events; at most 4 KiB. Where the topic has a schema, what is read of `data` is checked against it.", absent: "all events"},
			"functions":   {is: listOf(nameType()), about: "A chain of at most 8, each working on what the one before put out.", absent: "none"},
			"deliver":     {is: mappingNamed("deliver"), about: "Where the events go.", must: true},
			"order":       {is: oneOf("none", "key"), about: "`key`: deliveries of one `partitionkey` go out one at a time, in the order of the topic.", absent: "`none`", std: "none"},
			"concurrency": {is: integerOf(1, maxConcurrency), about: "Sends under way at once.", absent: "16", std: 16},
			"rate":        {is: rateType(), about: "Events sent at most; of subscriptions that push.", absent: "`unlimited`", std: "unlimited"},
			"retry":       {is: mappingNamed("retry"), about: "When a failed delivery is tried again."},
			"parked":      {is: mappingNamed("parked"), about: "Bounds of what waits for its next try."},
			"deadLetter":  {is: nameType(), about: "Topic for what cannot be delivered. Not the topic that is read, nor one from which they come back by way of others.", absent: "`NAME.dead`; none where `deliver` is `pull` and there are no functions"},
			"shadow":      {is: either(plainText("`NAME@sha256:…`"), listOf(plainText("`NAME@sha256:…`"))), about: "A version of one of the functions, or at most 4, that runs beside the one in force and is compared with it.", absent: "none"},
		}},
		{name: "pull", at: "subscriptions.NAME.deliver.pull", shape: pullShape, null: true, about: "Events are leased to whoever pulls.", keys: map[string]keyDoc{
			"ackDeadline": {is: duration("10s to 10m"), about: "After which an event that was not acknowledged is leased again.", absent: "10s", std: "10s"},
		}},
		{name: "stream", at: "subscriptions.NAME.deliver.stream", shape: streamShape, null: true, about: "Events are appended to the topic `NAME.out`, which is read as a stream. It has the partitions and bounds of the topic that is read, unless set.", keys: map[string]keyDoc{
			"retain": {is: mappingNamed("retain"), about: "Bounds of `NAME.out`.", absent: "those of the topic that is read"},
		}},
		{name: "retry", at: "subscriptions.NAME.retry", shape: retryShape, about: "When a failed delivery is tried again, and how often.", keys: map[string]keyDoc{
			"attempts":    {is: either(integerOf(1, 1_000_000), oneOf("unlimited")), about: "Tries in all, the first included. Leases of `pull` are 5 whatever is set, or `unlimited`.", absent: "10", std: 10},
			"schedule":    {is: either(listOf(duration("1ms to 30d")), oneOf("exponential")), about: "Waits after the first try, the second…; the last repeats. `exponential` is short for the defaults of that key.", absent: "[5s, 5m, 30m, 2h, 5h, 10h, 14h, 20h, 24h]"},
			"exponential": {is: mappingNamed("exponential"), about: "Waits that grow, instead of a schedule.", absent: "not used"},
			"jitter":      {is: numberOf(0, 1), about: "± share of a wait.", absent: "0.2", std: 0.2},
			"maxAge":      {is: duration("1s to 10 years"), about: "No further try is begun later than this after the event was received, redriven or due; the first is always made.", absent: "no bound"},
			"on4xx":       {is: oneOf("retry", "deadLetter"), about: "`deadLetter`: an answer of 400 to 499 ends the tries at once, but for 408, 410, 425 and 429.", absent: "`retry`", std: "retry"},
		}},
		{name: "exponential", at: "subscriptions.NAME.retry.exponential", shape: exponentialShape, about: "Waits that grow.", keys: map[string]keyDoc{
			"first":  {is: duration("1ms to 30d"), about: "The wait after the first try.", absent: "1s", std: "1s"},
			"factor": {is: numberOf(1, 100), about: "What each wait is multiplied by to make the next.", absent: "2", std: 2},
			"max":    {is: duration("1ms to 30d"), about: "No wait is longer.", absent: "1h", std: "1h"},
		}},
		{name: "parked", at: "subscriptions.NAME.parked", shape: parkedShape, about: "What waits for its next try is copied out of the topic.", keys: map[string]keyDoc{
			"bytes": {is: sizeType("at least 1"), about: "When it is full the subscription reads no new events.", absent: "256MiB", std: "256MiB"},
		}},
		{name: "host", at: "hosts.HOST", shape: hostShape, about: "Limits of one host, for all subscriptions together.", keys: map[string]keyDoc{
			"concurrency": {is: either(integerOf(1, maxConcurrency), oneOf("unlimited")), about: "Sends under way at once.", absent: "`unlimited`", std: "unlimited"},
			"rate":        {is: rateType(), about: "Sends begun; a batch is one send.", absent: "`unlimited`", std: "unlimited"},
		}},
		scheduleKeys(),
		mqttKeys(),
		namesKeys(),
	}
	all = append(all, describeSources(schemes)...)
	all = append(all, describeBridges(bridges)...)
	return withSinks(append(all, describeTests()...), sinks)
}

func scheduleKeys() described {
	return described{name: "schedule", at: "schedules.NAME", shape: scheduleShape, any: []string{"cron", "every"}, about: "An event that the router publishes by itself, at the times of `cron` or `every` so often.", keys: map[string]keyDoc{
		"topic":    {is: nameType(), about: "That the events go into. One that nothing else names is made with defaults.", must: true},
		"cron":     {is: plainText("five fields, or @hourly and the like"), about: "Minute, hour, day of the month, month, day of the week, such as `0 2 * * *`; or `@hourly`, `@daily`, `@midnight`, `@weekly`, `@monthly`, `@yearly`, `@annually`."},
		"every":    {is: duration("1s to 366d"), about: "In place of `cron`: the times are multiples of this since 1970-01-01T00:00:00Z."},
		"timezone": {is: plainText("IANA name"), about: "Of `cron`, such as `Europe/Berlin`. A time that clocks leave out is the moment they are set; one that comes twice is the first.", absent: "`UTC`", std: "UTC"},
		"missed":   {is: oneOf("once", "skip", "all"), about: "What becomes of times at which the router did not run: `once` publishes the last of them, `skip` none, `all` each of the last 1,000.", absent: "`once`", std: "once"},
		"type":     {is: plainText("text"), about: "Of the event.", absent: "`schedule`", std: "schedule"},
		"source":   {is: plainText("text"), about: "Of the event.", absent: "`/schedules/NAME`"},
		"subject":  {is: plainText("text"), about: "Of the event.", absent: "none"},
		"key":      {is: plainText("text"), about: "The event's partitionkey.", absent: "none"},
		"data":     {is: valueType{"any value", map[string]any{}}, about: "Of the event, as JSON.", absent: "none"},
	}}
}

// title is the heading of a mapping in the reference.
func (d described) title() string {
	if d.name == "file" {
		return "The file"
	}
	return "`" + strings.ReplaceAll(d.at, ", ", "`, `") + "`"
}
