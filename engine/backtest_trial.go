package engine

import (
	"context"

	"github.com/millrace/millrace/engine/event"
)

type pastChain struct{}

func (b *backtest) planChains(context.Context) error { return nil }

func (b *backtest) offer(context.Context, *pastSlot, uint8, event.Record) error { return nil }

func (b *backtest) flush(context.Context) error { return nil }

func (b *backtest) close(context.Context) {}
