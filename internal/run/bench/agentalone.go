package bench

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"chancery/client"
	"chancery/internal/agent/loop"
	"chancery/internal/run/consumer"
)

// oneAgent measures an agent as a host has it: this program, in a process of its own.
func (b *bench) oneAgent(ctx context.Context, a *authority) error {
	b.say("%s: one agent", a.engine)
	dir, err := os.MkdirTemp(b.dir, "agent-")
	if err != nil {
		return err
	}
	h, err := a.client.AddHost(ctx, client.AddHostRequest{Name: "alone.bench.example", Placements: placements("server")})
	if err != nil {
		return err
	}
	state, root := memberDirs(dir, "alone")
	if err := os.MkdirAll(root, 0o755); err != nil {
		return err
	}
	if _, err := loop.Join(ctx, loop.JoinOptions{State: state, Root: root, Token: h.Token, Version: "bench"}); err != nil {
		return err
	}
	if err := b.passes(ctx, a, state, root); err != nil {
		return fmt.Errorf("passes that change nothing: %w", err)
	}
	return b.rest(ctx, a, state)
}

// passes measures passes of an agent that has all that it shall: asking the authority, looking at the files, reporting. They
// must leave every file as it was, down to the times in its inode.
func (b *bench) passes(ctx context.Context, a *authority, state, root string) (err error) {
	agent, err := loop.New(loop.Options{State: state, Version: "bench"})
	if err != nil {
		return err
	}
	defer agent.Close()
	for range 2 { // the first places; the second may find a newer checkpoint
		result, err := agent.Once(ctx)
		if err != nil {
			return err
		}
		if !result.Done() {
			return fmt.Errorf("the agent has not placed what it shall: %s: %+v", result, result.Observations)
		}
	}
	before, err := inodes(state, root)
	if err != nil {
		return err
	}
	cpu, err := ownTime()
	if err != nil {
		return err
	}
	var took latencies
	for range b.agentPasses {
		begin := time.Now()
		result, err := agent.Once(ctx)
		if err != nil {
			return err
		}
		took = append(took, time.Since(begin))
		if !result.Done() || len(result.Problems) > 0 {
			return fmt.Errorf("%s: %q", result, result.Problems)
		}
	}
	used, err := ownTime()
	if err != nil {
		return err
	}
	after, err := inodes(state, root)
	if err != nil {
		return err
	}
	if before != after {
		return fmt.Errorf("they wrote: before them there was\n%s\nand after them\n%s", before, after)
	}
	b.add(row{what: "agent, nothing to do", who: "one pass", engine: a.engine, store: empty, p50: took.percentile(50), p99: took.percentile(99),
		cpu: (used - cpu) / time.Duration(b.agentPasses), note: "desired state, files, report; wrote nothing"})
	b.judge(ctx, "agent-pass."+a.engine+"."+empty, float64(took.percentile(50))/float64(time.Millisecond), nil)
	return nil
}

// inodes lists all files below some directories with everything by which a write shows.
func inodes(dirs ...string) (string, error) {
	var all strings.Builder
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := entry.Info()
			if err != nil {
				return err
			}
			st, ok := info.Sys().(*syscall.Stat_t)
			if !ok {
				return fmt.Errorf("%s has no inode", path)
			}
			fmt.Fprintln(&all, path, st.Ino, info.Mode(), st.Uid, st.Gid, st.Size, st.Mtim.Nano(), st.Ctim.Nano())
			return nil
		})
		if err != nil {
			return "", err
		}
	}
	return all.String(), nil
}

// rest measures the memory of an agent that has come to rest.
func (b *bench) rest(ctx context.Context, a *authority, state string) error {
	p, err := consumer.Start(ctx, consumer.Program{Path: b.Program, Args: []string{"agent", "run", "--state", state}})
	if err != nil {
		return err
	}
	defer p.Stop()
	if err := pause(ctx, b.agentAlone); err != nil {
		return err
	}
	select {
	case <-p.Done():
		return fmt.Errorf("the agent ended: %s", p.Output())
	default:
	}
	rss, err := memory(p.PID(), "VmRSS")
	if err != nil {
		return err
	}
	peak, err := memory(p.PID(), "VmHWM")
	if err != nil {
		return err
	}
	share, private, err := rollup(p.PID())
	if err != nil {
		return err
	}
	cpu, err := processTime(p.PID())
	if err != nil {
		return err
	}
	b.add(row{what: "agent at rest", who: "one process", engine: a.engine, store: empty, rss: rss, cpu: cpu,
		note: fmt.Sprintf("%s after its start; Pss %s, of its own %s, peak %s", b.agentAlone, octets(share), octets(private), octets(peak))})
	b.judge(ctx, "agent-memory."+a.engine+"."+empty, float64(rss)/(1<<20), nil)
	return p.Stop()
}

// rollup is the proportional share of a process of the memory that it maps, and what is its own alone.
func rollup(pid int) (share, private int64, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, 0, err
	}
	for line := range bytes.Lines(text) {
		f := strings.Fields(string(line))
		if len(f) != 3 || f[2] != "kB" {
			continue
		}
		n, err := strconv.ParseInt(f[1], 10, 64)
		if err != nil {
			return 0, 0, err
		}
		switch f[0] {
		case "Pss:":
			share = n << 10
		case "Private_Clean:", "Private_Dirty:":
			private += n << 10
		}
	}
	return share, private, nil
}
