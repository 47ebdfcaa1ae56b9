package rules

import "maps"

// describeTests is what the keys of tests mean.
func describeTests() []described {
	wanted := func(of string) valueType {
		return either(integerOf(0, maxExpect), oneOf("none"), listOf(mappingNamed(of)))
	}
	anyValue := valueType{"any value", map[string]any{}}
	answer := either(integerOf(200, 599), oneOf("timeout"), mappingNamed("answer"))
	event := map[string]keyDoc{
		"id":              {is: anyScalar(), about: "One that is given takes part in the dedupe window."},
		"source":          {is: anyScalar(), about: "Of the event."},
		"type":            {is: anyScalar(), about: "Of the event."},
		"subject":         {is: anyScalar(), about: "Of the event."},
		"time":            {is: anyScalar(), about: "RFC 3339."},
		"datacontenttype": {is: anyScalar(), about: "With one that is not JSON, `data` is a text."},
		"dataschema":      {is: anyScalar(), about: "Of the event."},
		"key":             {is: anyScalar(), about: "The ordering key, `partitionkey`."},
		"ext":             {is: mapOf(anyScalar()), about: "Extensions by name."},
		"data":            {is: anyValue, about: "As JSON. Of what is expected: an object may have more keys, and null is null or missing."},
	}
	dead := maps.Clone(event)
	dead["reason"] = keyDoc{is: anyScalar(), about: "Why it was given up."}
	dead["code"] = keyDoc{is: anyScalar(), about: "What the receiver answered last."}
	return []described{
		{name: "test", at: "tests[]", shape: testShape, any: []string{"expect", "topics", "reply"}, about: "What is to come of which events. References are not replaced in tests. See [tests of rules](rules-tests.md).", keys: map[string]keyDoc{
			"name":    {is: plainText("one line"), about: "Unique in the rules.", must: true},
			"at":      {is: plainText("time"), about: "Where the clock starts.", absent: "2026-01-01T00:00:00Z"},
			"for":     {is: duration("1ms to 366d"), about: "How far the clock goes. Schedules run where it is given.", absent: "until nothing waits, 31 days at most"},
			"given":   {is: either(mappingNamed("given"), listOf(mappingNamed("given"))), about: "What is published. With `for` it may be left out: schedules publish by themselves."},
			"answers": {is: mapOf(either(answer, listOf(answer))), about: "What receivers answer, by subscription: one answer, or one for each attempt of an event; the last repeats.", absent: "200"},
			"expect":  {is: mapOf(either(wanted("event"), mappingNamed("expect"))), about: "What subscriptions do, by name: how many events they deliver, which, or a mapping."},
			"topics":  {is: mapOf(wanted("event")), about: "What subscriptions put into topics, by name."},
			"reply":   {is: either(mappingNamed("reply"), oneOf("none")), about: "What the producer of the one event given, who waits, is answered."},
		}},
		{name: "given", at: "tests[].given", shape: givenShape, any: []string{"event", "events"}, about: "Events for one topic.", keys: map[string]keyDoc{
			"topic":   {is: nameType(), about: "Where to.", must: true},
			"after":   {is: duration("0s to 366d"), about: "When, since the clock's start.", absent: "0s"},
			"event":   {is: mappingNamed("event"), about: "One event."},
			"events":  {is: either(listOf(mappingNamed("event")), plainText("path")), about: "Several, in one request; or the path of a file with an event a line."},
			"refused": {is: boolean(), about: "Publishing must fail.", absent: "false", std: false},
		}},
		{name: "event", at: "tests[].given.event", shape: eventShape, about: "An event, or what one must have, by the names of filters.", keys: event},
		{name: "deadLetter", at: "tests[].expect.NAME.deadLetters[]", shape: deadLetterShape, about: "What a dead letter must have.", keys: dead},
		{name: "answer", at: "tests[].answers.NAME", shape: answerShape, about: "What a receiver answers to one attempt.", keys: map[string]keyDoc{
			"status":     {is: integerOf(200, 599), about: "Of HTTP.", must: true},
			"retryAfter": {is: duration("1s to 24h"), about: "When to come again.", absent: "it does not say"},
			"body":       {is: anyValue, about: "A text, or JSON.", absent: "none"},
		}},
		{name: "expect", at: "tests[].expect.NAME", shape: expectShape, about: "What is expected of one subscription; what is left out is not looked at.", keys: map[string]keyDoc{
			"delivered":   {is: wanted("event"), about: "How many events have arrived, or which."},
			"inOrder":     {is: boolean(), about: "The list is in order.", absent: "false", std: false},
			"exact":       {is: boolean(), about: "The data have no keys but those named.", absent: "false", std: false},
			"attempts":    {is: either(integerOf(0, maxExpect), listOf(mappingNamed("attempt"))), about: "The requests to the receiver: how many, or which, in order."},
			"deadLetters": {is: either(integerOf(0, maxExpect), oneOf("none"), listOf(mappingNamed("deadLetter"))), about: "What was given up."},
			"disabled":    {is: boolean(), about: "Whether the receiver has disabled the subscription."},
		}},
		{name: "attempt", at: "tests[].expect.NAME.attempts[]", shape: attemptShape, about: "One request.", keys: map[string]keyDoc{
			"after":  {is: duration("0s to 366d"), about: "When, since the clock's start, to a tenth of a second."},
			"answer": {is: either(integerOf(200, 599), oneOf("timeout")), about: "What it was answered."},
			"events": {is: integerOf(1, maxExpect), about: "How many it had."},
		}},
		{name: "reply", at: "tests[].reply", shape: replyShape, about: "What a producer who waits is answered.", keys: map[string]keyDoc{
			"status": {is: integerOf(200, 599), about: "Of HTTP."},
			"data":   {is: anyValue, about: "As JSON; an object may have more keys."},
			"exact":  {is: boolean(), about: "The data have no keys but those named.", absent: "false", std: false},
		}},
	}
}
