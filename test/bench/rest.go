package main

import (
	"context"

	"github.com/tartarus-vm/tartarus/internal/measure"
)

func perRun(ctx context.Context, b *bench) ([]measure.Row, error)    { return nil, nil }
func memory(ctx context.Context, b *bench) ([]measure.Row, error)    { return nil, nil }
func coldStart(ctx context.Context, b *bench) ([]measure.Row, error) { return nil, nil }
