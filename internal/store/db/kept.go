package db

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"strconv"
	"strings"
	"sync"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pki/keyfile"
)

const (
	// keptAhead is how far what is kept goes ahead of the number that wants it: under load, one write of the file in that time is
	// enough. A process that is killed leaves the surplus, and its successor waits for the primary rather than believe a standby.
	keptAhead = time.Second

	nobodyKnows = math.MaxInt64
)

// keptMark is a file with a number that no acknowledged transaction of this node is above: what a process that starts while the
// primary is away measures the standby by. It is written, and synced, before a number above it is sent; and made exact when no more are.
type keptMark struct {
	path string // empty where nothing is kept

	mu    sync.Mutex
	bound int64 // guarded by mu: what the file says
	open  bool  // guarded by mu: a transaction with a number has no answer yet
}

// load reads the file. Where there is none nobody knows what was acknowledged.
func (k *keptMark) load(path string) (int64, error) {
	if path == "" {
		return 0, nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.path = path
	text, err := keyfile.ReadFile(path, 64)
	if errors.Is(err, fs.ErrNotExist) {
		return nobodyKnows, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read the number of the newest write: %w", err)
	}
	number, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil || number <= 0 {
		return nobodyKnows, nil // a damaged file tells as much as none
	}
	k.bound = number
	return number, nil
}

// begin makes sure that the file does not say less than a number that is about to be sent.
func (k *keptMark) begin(number int64) error {
	if k.path == "" {
		return nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if number > k.bound {
		if err := k.write(number + keptAhead.Microseconds()); err != nil {
			return (&fault.Error{Kind: fault.Unavailable, Err: err, Message: "the node's directory cannot be written, so nothing was changed: " +
				"after a start it could not tell what it has acknowledged"}).WithHint("make room for it, or let the node write it: %s", k.path)
		}
	}
	k.open = true
	return nil
}

// end is told that what begin announced has its answer.
func (k *keptMark) end() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.open = false
}

// settle makes the file say the newest number that was acknowledged, and no more. If that fails the file says too much, which is safe.
func (k *keptMark) settle(acknowledged int64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.path != "" && !k.open && acknowledged > 0 && acknowledged < k.bound {
		_ = k.write(acknowledged)
	}
}

func (k *keptMark) write(number int64) error {
	if err := keyfile.ReplaceBeside(k.path, []byte(strconv.FormatInt(number, 10)+"\n"), 0o600); err != nil {
		return err
	}
	k.bound = number
	return nil
}

// settleIdle makes the file exact once nothing was written for a while.
func (d *DB) settleIdle(now time.Time) {
	if floor := d.floor.Load(); Micros(now)-floor > keptAhead.Microseconds() {
		d.kept.settle(floor)
	}
}
