package bench

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// profile says where the time, or the memory, of a missed budget went: a file for `go tool pprof`, and its first functions.
type profile struct {
	file string
	top  string
}

// profiler returns a function that puts the load on again, and has the node write a profile meanwhile.
func (b *bench) profiler(a *authority, load func(context.Context) error) func(context.Context, string) (*profile, error) {
	return func(ctx context.Context, name string) (*profile, error) {
		ended := make(chan error, 1)
		go func() { ended <- load(ctx) }()
		octets, err := fetch(ctx, fmt.Sprintf("http://%s/debug/pprof/profile?seconds=%d", a.config.Listen.Metrics, max(1, int(b.profileLength.Seconds()))))
		if end := <-ended; err == nil {
			err = end
		}
		if err != nil {
			return nil, err
		}
		return b.keep(ctx, name+".cpu.pprof", octets)
	}
}

// heap returns a function that has the node write what it has allocated.
func (b *bench) heap(a *authority) func(context.Context, string) (*profile, error) {
	return func(ctx context.Context, name string) (*profile, error) {
		octets, err := fetch(ctx, "http://"+a.config.Listen.Metrics+"/debug/pprof/allocs")
		if err != nil {
			return nil, err
		}
		return b.keep(ctx, name+".allocs.pprof", octets)
	}
}

// keep writes a profile, and lists its first functions where the Go tools are there to read it.
func (b *bench) keep(ctx context.Context, name string, octets []byte) (*profile, error) {
	if err := os.MkdirAll(b.Profiles, 0o755); err != nil {
		return nil, err
	}
	p := &profile{file: filepath.Join(b.Profiles, name)}
	if err := os.WriteFile(p.file, octets, 0o644); err != nil {
		return nil, err
	}
	out, err := exec.CommandContext(ctx, "go", "tool", "pprof", "-top", "-nodecount=15", p.file).Output()
	if err != nil {
		p.top = "go tool pprof -top " + p.file
		return p, nil
	}
	p.top = strings.TrimSpace(string(out))
	return p, nil
}
