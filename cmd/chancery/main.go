// Command chancery is a node of a Chancery authority, the agent of a host, and the commands that speak to a node.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"chancery/internal/run/cli"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := cli.Run(ctx, os.Args[1:], cli.Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr})
	stop()
	os.Exit(code)
}
