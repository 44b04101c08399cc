package server

import (
	"io"
	"sync"
	"time"
)

// Lines writes log lines in groups: under load one write for each request would cost more than answering it from a cache.
// A line waits for others for a few milliseconds at most, so a process that is killed loses no more than that; what must not
// be lost is in the audit. Close writes what is left.
type Lines struct {
	out io.Writer

	mu     sync.Mutex
	more   *sync.Cond // of mu: there are lines, or room, or the end
	lines  []byte     // guarded by mu
	closed bool       // guarded by mu
	ended  chan struct{}
}

const (
	linesWait = 2 * time.Millisecond
	linesMost = 1 << 20 // a log that is not taken away holds up who writes to it, and does not grow without bound
)

// NewLines starts writing to out.
func NewLines(out io.Writer) *Lines {
	l := &Lines{out: out, ended: make(chan struct{})}
	l.more = sync.NewCond(&l.mu)
	go l.run()
	return l
}

// Write takes one or more whole lines.
func (l *Lines) Write(lines []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.lines) > linesMost && !l.closed {
		l.more.Wait()
	}
	if l.closed {
		return l.out.Write(lines)
	}
	if len(l.lines) == 0 {
		l.more.Broadcast()
	}
	l.lines = append(l.lines, lines...)
	return len(lines), nil
}

// run is the one goroutine that writes until Close.
func (l *Lines) run() {
	defer close(l.ended)
	var batch []byte
	for {
		l.mu.Lock()
		for len(l.lines) == 0 && !l.closed {
			l.more.Wait()
		}
		batch, l.lines = l.lines, batch[:0]
		closed := l.closed
		l.more.Broadcast()
		l.mu.Unlock()
		if len(batch) > 0 {
			_, _ = l.out.Write(batch) // there is nowhere to say that the log cannot be written
		}
		if closed {
			return
		}
		time.Sleep(linesWait)
	}
}

// Close writes what is left. Lines that come later are written at once.
func (l *Lines) Close() error {
	l.mu.Lock()
	l.closed = true
	l.more.Broadcast()
	l.mu.Unlock()
	<-l.ended
	return nil
}
