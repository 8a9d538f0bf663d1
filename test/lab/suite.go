package main

import (
	"context"
	"io"
)

func runSuite(ctx context.Context, s settings, stdout io.Writer) (int, error) { return 0, nil }
