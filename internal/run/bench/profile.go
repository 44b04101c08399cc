package bench

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"
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
		return b.cpuProfile(ctx, a, name, ended)
	}
}

// loadProfiler is profiler for a target. Its profile begins when the measured time does: making the requests beforehand can
// take longer than that.
func (b *bench) loadProfiler(a *authority, t *target) func(context.Context, string) (*profile, error) {
	return func(ctx context.Context, name string) (*profile, error) {
		again, begun := *t, make(chan struct{})
		again.begun = sync.OnceFunc(func() { close(begun) })
		ended := make(chan error, 1)
		go func() {
			_, err := again.put(ctx, b.clients, b.profileLength+time.Second)
			again.begun() // where it failed before
			ended <- err
		}()
		<-begun
		return b.cpuProfile(ctx, a, name, ended)
	}
}

// cpuProfile has the node write a profile, and waits for the end of the load.
func (b *bench) cpuProfile(ctx context.Context, a *authority, name string, ended <-chan error) (*profile, error) {
	seconds := max(1, int(b.profileLength.Seconds()))
	octets, err := fetch(ctx, fmt.Sprintf("http://%s/debug/pprof/profile?seconds=%d", a.config.Listen.Metrics, seconds))
	if end := <-ended; err == nil {
		err = end
	}
	if err != nil {
		return nil, err
	}
	return b.keep(ctx, name+".cpu.pprof", octets)
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
