package main

import "fmt"

// pullMeasurements are those of pulling and of catching up.
func pullMeasurements() []measurement {
	return []measurement{measurePull(), measureRedisPull(), measureCatchUp()}
}

func pullRows() []row {
	r := func(key, name, figure, limit string, r row) row {
		r.key, r.name, r.group, r.values, r.figure, r.limit, r.show = key, name, "pulling", []string{figure, limit}, value(figure), value(limit), rate
		return r
	}
	return []row{
		r("pull", fmt.Sprintf("pull and ack / Redis Streams synced always, %d consumers, batches of %d", pullConsumers, pullBatch), "pull", "redis-pull",
			row{floor: 0.5, note: "A backlog is emptied (-backlog/5 events): ours over HTTP, Redis' by XREADGROUP and XACK over its own protocol."}),
		r("catch-up", "a subscription that is behind catches up / live rate", "catch-up", "accept-64", row{ratio: times, floor: 3,
			note: fmt.Sprintf("It hands its backlog (-backlog) to %d consumers that pull and acknowledge %d at a time. Live rate: durable accept, 64 connections.", catchUpConsumers, catchUpBatch)}),
		r("publish-meanwhile", "publishing, 64 connections, while a subscription reads its backlog / alone", "publish-meanwhile", "publish-alone", row{floor: 0.8,
			note: "It reads with a filter that lets nothing pass, one backlog after the other."}),
		r("publish-pulled", "publishing while consumers empty a backlog / alone", "publish-pulled", "publish-alone",
			row{note: "Generator and consumers share the cores with the router: two loads of which each fills the machine cannot both keep their pace."}),
	}
}
