package grpcapi

import (
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/sdk/client/millracev1"
)

// startOf is where reading begins; def if that is not said.
func startOf(in *millracev1.Start, def event.Start, now time.Time) (event.Start, error) {
	switch x := in.GetStart().(type) {
	case nil:
		return def, nil
	case *millracev1.Start_Point:
		switch x.Point {
		case millracev1.StartPoint_START_POINT_EARLIEST:
			return event.Start{At: event.Earliest}, nil
		case millracev1.StartPoint_START_POINT_LATEST:
			return event.Start{At: event.Latest}, nil
		}
		return def, event.Invalid("start.point", fmt.Sprintf("is %d; want START_POINT_EARLIEST or START_POINT_LATEST", x.Point))
	case *millracev1.Start_After:
		if x.After == "" {
			return def, event.Invalid("start.after", "is empty; give a cursor, or leave start out")
		}
		return event.Start{At: event.AtCursor, Cursor: x.After}, nil
	case *millracev1.Start_Since:
		if x.Since.CheckValid() != nil {
			return def, event.Invalid("start.since", "is no time of the years 1 to 9999")
		}
		return event.Start{At: event.AtTime, Time: x.Since.AsTime()}, nil
	case *millracev1.Start_Ago:
		ago, err := durationOf("start.ago", x.Ago, 0, 1<<63-1)
		if err != nil {
			return def, err
		}
		return event.Start{At: event.AtTime, Time: now.Add(-ago)}, nil
	}
	return def, event.Invalid("start", "is of a kind that this build does not know")
}

// durationOf is a duration of least to most; 0 if it is absent.
func durationOf(at string, in *durationpb.Duration, least, most time.Duration) (time.Duration, error) {
	if in == nil {
		return 0, nil
	}
	d := in.AsDuration()
	if err := in.CheckValid(); err != nil || d < least || d > most {
		return 0, event.Invalid(at, fmt.Sprintf("is %d s and %d ns; want a duration of %s to %s", in.GetSeconds(), in.GetNanos(), least, most))
	}
	return d, nil
}

func positionOf(p event.Position) *millracev1.Position {
	return &millracev1.Position{Partition: p.Partition, Offset: p.Offset}
}

// placeOf is where a request says that an event lies.
func placeOf(in *millracev1.Position) (event.Position, error) {
	if in == nil {
		return event.Position{}, event.Invalid("position", "is missing; say where the event lies")
	}
	return event.Position{Partition: in.GetPartition(), Offset: in.GetOffset()}, nil
}

func receivedOf(rec event.Record, cursor string) *millracev1.Received {
	return &millracev1.Received{Event: protoOf(rec), Position: positionOf(rec.Position()), RecordedTime: timestamppb.New(rec.ReceivedAt()), Cursor: cursor}
}

func replyOf(r *event.Reply) *millracev1.Reply {
	if r == nil {
		return nil
	}
	return &millracev1.Reply{Status: int32(r.Status), ContentType: text(r.ContentType), Data: r.Data}
}
