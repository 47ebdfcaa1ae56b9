package rules

import "github.com/millrace/millrace/engine/event"

func effectiveTopic(t event.Topic, source *doc) *doc {
	d := &doc{kind: mapping}
	d.set("partitions", number(int64(t.Partitions)))
	d.set("retain", retainDoc(t.Retain))
	full := "drop-oldest"
	if t.WhenFull == event.Reject {
		full = "reject"
	}
	d.set("whenFull", text(full))
	d.set("dedupe", text(formatDuration(t.Dedupe)))
	d.set("trace", traceDoc(t.Trace))
	if s := source.get("schema"); s != nil {
		d.set("schema", s)
	}
	return d.over(source)
}

func retainDoc(r event.Retain) *doc {
	d := &doc{kind: mapping}
	if r.Bytes != 0 {
		d.set("bytes", size(r.Bytes))
	}
	if r.Age != 0 {
		d.set("age", text(formatDuration(r.Age)))
	}
	if r.Events != 0 {
		d.set("events", number(r.Events))
	}
	return d
}

func effectiveFunction(f Function) *doc {
	d := &doc{kind: mapping}
	for _, key := range []string{"wasm", "module"} {
		if s := f.source.get(key); s != nil {
			d.set("wasm", s)
		}
	}
	if s := f.source.get("js"); s != nil {
		d.set("js", s)
	}
	limits := &doc{kind: mapping}
	limits.set("cpu", text(formatDuration(f.Limits.CPU)))
	limits.set("wall", text(formatDuration(f.Limits.Wall)))
	limits.set("memory", size(f.Limits.Memory))
	limits.set("output", size(int64(f.Limits.Output)))
	if f.Limits.Fuel != 0 {
		limits.set("fuel", number(f.Limits.Fuel))
	} else {
		limits.set("fuel", text("unlimited"))
	}
	d.set("limits", limits)
	for _, key := range []string{"config", "secrets", "allow"} {
		if s := f.source.get(key); s != nil {
			d.set(key, s)
		}
	}
	return d.over(f.source)
}

func effectiveSubscription(def *subscriptionDef, source *doc) *doc {
	s := def.Subscription
	d := &doc{kind: mapping}
	d.set("topic", text(s.Topic))
	if start := source.get("start"); start != nil {
		d.set("start", start)
	} else {
		d.set("start", text("latest"))
	}
	if s.Filter != "" {
		d.set("filter", text(s.Filter))
	}
	if len(s.Functions) > 0 {
		chain := &doc{kind: list}
		for _, name := range s.Functions {
			chain.items = append(chain.items, text(name))
		}
		d.set("functions", chain)
	}
	if len(s.Shadow) > 0 {
		shadow := &doc{kind: list}
		for _, ref := range s.Shadow {
			shadow.items = append(shadow.items, text(ref))
		}
		d.set("shadow", shadow)
	}
	d.set("order", text([...]string{"none", "key"}[s.Order]))
	d.set("deliver", deliverDoc(def))
	d.set("concurrency", number(int64(s.Concurrency)))
	d.set("rate", text(formatRate(s.Rate)))
	d.set("retry", retryDoc(s.Retry))
	parked := &doc{kind: mapping}
	parked.set("bytes", size(s.Parked))
	d.set("parked", parked)
	if s.DeadLetter != "" {
		d.set("deadLetter", text(s.DeadLetter))
	}
	return d.over(source)
}

func deliverDoc(def *subscriptionDef) *doc {
	d := &doc{kind: mapping}
	switch dl := def.Deliver; dl.Face {
	case event.ToTopic:
		d.set("topic", text(dl.Topic))
	case event.Stream:
		if dl.MQTT.Topic != "" {
			d.set("mqtt", deliverMQTTDoc(dl))
			break
		}
		stream := &doc{kind: mapping}
		if dl.StreamKeep != (event.Retain{}) {
			stream.set("retain", retainDoc(dl.StreamKeep))
		}
		d.set("stream", stream)
	case event.Pull:
		pull := &doc{kind: mapping}
		pull.set("ackDeadline", text(formatDuration(dl.AckDeadline)))
		d.set("pull", pull)
	case event.Push:
		d.set(dl.Kind, def.sink)
	}
	return d
}

func retryDoc(r event.RetryPolicy) *doc {
	d := &doc{kind: mapping}
	if r.Attempts == event.Unlimited {
		d.set("attempts", text("unlimited"))
	} else {
		d.set("attempts", number(int64(r.Attempts)))
	}
	if x := r.Exponential; x != nil {
		e := &doc{kind: mapping}
		e.set("first", text(formatDuration(x.First)))
		e.set("factor", float(x.Factor))
		e.set("max", text(formatDuration(x.Max)))
		d.set("exponential", e)
	} else {
		waits := &doc{kind: list}
		for _, w := range r.Schedule {
			waits.items = append(waits.items, text(formatDuration(w)))
		}
		d.set("schedule", waits)
	}
	d.set("jitter", float(r.Jitter))
	if r.MaxAge > 0 {
		d.set("maxAge", text(formatDuration(r.MaxAge)))
	}
	d.set("on4xx", text([...]string{"retry", "deadLetter"}[r.On4xx]))
	return d
}
