package bench

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"chancery/client"
	"chancery/internal/agent/loop"
)

// crewOrder is what a process of simulated agents is told, by a file that only its owner reads.
type crewOrder struct {
	Listen  string // where the benchmark asks how they do
	Members []crewMember

	// Dir has agents that are the real ones: each with a state directory and a root of its own below it. Without it they
	// only wait for changes, each on a connection of its own with an identity of its own.
	Dir string

	// Consume says that each real agent has a consumer beside it, which visits those of the others.
	Consume bool
	// Hold says that those without a directory get certificates and report, as real ones do, and keep them in memory.
	Hold bool

	Authority string // of those that only wait: host:port
	Roots     string // PEM
	Wait      time.Duration
}

// crewMember is one simulated agent.
type crewMember struct {
	Name  string
	Token string `json:",omitempty"` // of a real one, which joins
	Pair  string `json:",omitempty"` // of one that only waits: its key and certification path, PEM
}

// crewState is how the agents of a process do.
type crewState struct {
	Joined  int      // have an identity
	Waiting int      // have had a first answer, and wait for what comes next
	Polls   int64    // that were answered
	Errors  int      // in all
	First   []string // of the errors
	Heard   []int64  // Unix nanoseconds: when each was last told of a change, or 0
}

// crew is a process of simulated agents.
type crew struct {
	order  crewOrder
	begun  chan struct{}
	visits visits

	joined, waiting, polls atomic.Int64
	heard                  []atomic.Int64

	mu     sync.Mutex // guards what follows
	errors int
	first  []string
}

// mostErrors bounds how many errors a crew tells of.
const mostErrors = 5

// ServeAgents runs simulated agents in this process as a file says, until ctx ends. They begin when they are told to.
func ServeAgents(ctx context.Context, file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	c := &crew{begun: make(chan struct{})}
	if err := json.Unmarshal(text, &c.order); err != nil {
		return err
	}
	c.heard = make([]atomic.Int64, len(c.order.Members))
	socket, err := net.Listen("tcp", c.order.Listen)
	if err != nil {
		return err
	}
	begin := sync.OnceFunc(func() { close(c.begun) })
	mux := http.NewServeMux()
	mux.HandleFunc("/begin", func(http.ResponseWriter, *http.Request) { begin() })
	mux.HandleFunc("/state", func(w http.ResponseWriter, _ *http.Request) {
		if err := json.NewEncoder(w).Encode(c.state()); err != nil {
			panic(http.ErrAbortHandler)
		}
	})
	c.visits.serve(mux)
	server := &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: mux}
	var all sync.WaitGroup
	defer all.Wait()
	defer c.visits.end()
	life := c.live
	if c.order.Dir == "" {
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM([]byte(c.order.Roots)) {
			return errors.New("the order names no root of identities")
		}
		turn := make(chan struct{}, 64) // so many connect at a time
		life = func(ctx context.Context, i int) error { return c.wait(ctx, i, roots, turn) }
	}
	for i := range c.order.Members {
		all.Go(func() {
			select {
			case <-c.begun:
			case <-ctx.Done():
				return
			}
			if err := life(ctx, i); err != nil && ctx.Err() == nil {
				c.fail(fmt.Errorf("%s: %w", c.order.Members[i].Name, err))
			}
		})
	}
	context.AfterFunc(ctx, func() { server.Close() })
	if err := server.Serve(socket); ctx.Err() == nil {
		return err
	}
	return nil
}

func (c *crew) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.errors++; len(c.first) < mostErrors {
		c.first = append(c.first, err.Error())
	}
}

func (c *crew) state() crewState {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := crewState{Joined: int(c.joined.Load()), Waiting: int(c.waiting.Load()), Polls: c.polls.Load(), Errors: c.errors, First: c.first}
	for i := range c.heard {
		s.Heard = append(s.Heard, c.heard[i].Load())
	}
	return s
}

// live is a whole agent: it joins, and converges until ctx ends.
func (c *crew) live(ctx context.Context, i int) error {
	m := c.order.Members[i]
	state, root := memberDirs(c.order.Dir, m.Name)
	if err := os.MkdirAll(root, 0o755); err != nil {
		return err
	}
	if _, err := loop.Join(ctx, loop.JoinOptions{State: state, Root: root, Token: m.Token, Version: "bench"}); err != nil {
		return err
	}
	c.joined.Add(1)
	if c.order.Consume {
		if err := c.visits.add(m.Name, root); err != nil {
			return err
		}
	}
	agent, err := loop.New(loop.Options{State: state, Version: "bench"})
	if err != nil {
		return err
	}
	return errors.Join(agent.Run(ctx), agent.Close())
}

// memberDirs are an agent's state directory and its root.
func memberDirs(dir, name string) (state, root string) {
	return filepath.Join(dir, name, "state"), filepath.Join(dir, name, "root")
}

// wait is an agent that holds all it shall: it asks what that is, over and over.
func (c *crew) wait(ctx context.Context, i int, roots *x509.CertPool, turn chan struct{}) error {
	m := c.order.Members[i]
	pair, err := tls.X509KeyPair([]byte(m.Pair), []byte(m.Pair))
	if err != nil {
		return err
	}
	p := &poller{caller: caller{
		target: &target{address: c.order.Authority, tls: &tls.Config{RootCAs: roots, ServerName: "127.0.0.1", Certificates: []tls.Certificate{pair}}},
		reader: bufio.NewReaderSize(nil, 4<<10),
	}}
	if c.order.Hold {
		h := &holder{name: m.Name}
		h.poller.caller = p.caller
		return c.hold(ctx, i, turn, h)
	}
	defer p.close()
	ended := context.AfterFunc(ctx, p.interrupt)
	defer ended()
	for begun := false; ctx.Err() == nil; {
		err := p.reach(turn)
		if err == nil && !begun {
			c.waiting.Add(1)
			begun = true
		}
		changed := false
		if err == nil {
			changed, err = p.poll(c.order.Wait)
		}
		if err != nil {
			p.drop()
			if ctx.Err() == nil {
				c.fail(fmt.Errorf("%s: %w", m.Name, err))
				_ = pause(ctx, time.Second+rand.N(time.Second))
			}
			continue
		}
		if changed {
			c.heard[i].Store(time.Now().UnixNano())
		}
		c.polls.Add(1)
		_ = pause(ctx, rand.N(100*time.Millisecond)) // as agents do
	}
	return nil
}

// poller is a connection on which the desired state is asked for.
type poller struct {
	caller
	etag string
	told *wants // what the last answer said; nil where nobody wants to know

	mu   sync.Mutex // guards open
	open net.Conn   // the connection, while it may be interrupted
	over bool
}

// reach connects where there is no connection, in its turn, and learns what the host shall hold.
func (p *poller) reach(turn chan struct{}) error {
	if p.conn != nil {
		return nil
	}
	turn <- struct{}{}
	defer func() { <-turn }()
	if err := p.connect(); err != nil {
		return err
	}
	p.mu.Lock()
	p.open = p.conn
	over := p.over
	p.mu.Unlock()
	if over {
		return context.Canceled
	}
	_, err := p.poll(0)
	return err
}

// drop closes a connection that failed.
func (p *poller) drop() {
	p.mu.Lock()
	p.open = nil
	p.mu.Unlock()
	p.close()
}

// interrupt breaks what is waited for.
func (p *poller) interrupt() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.over = true
	if p.open != nil {
		_ = p.open.SetDeadline(time.Now())
	}
}

// poll makes one call, and reports whether there was something new.
func (p *poller) poll(wait time.Duration) (changed bool, err error) {
	p.buf = append(p.buf[:0], "GET "+client.Prefix+"/agent/desired?wait="...)
	p.buf = strconv.AppendInt(p.buf, int64(wait.Seconds()), 10)
	p.buf = append(append(p.buf, " HTTP/1.1\r\nAccept: application/json\r\nHost: "...), p.address...)
	if p.etag != "" {
		p.buf = append(append(append(p.buf, "\r\nIf-None-Match: \""...), p.etag...), '"')
	}
	p.buf = append(p.buf, "\r\n\r\n"...)
	p.mu.Lock()
	if !p.over {
		err = p.conn.SetDeadline(time.Now().Add(wait + time.Minute))
	}
	p.mu.Unlock()
	if err != nil {
		return false, err
	}
	if _, err := p.conn.Write(p.buf); err != nil {
		return false, err
	}
	status, err := p.answer()
	if err != nil || status == http.StatusNotModified {
		return false, err
	}
	var d struct {
		ETag string `json:"etag"`
	}
	into := any(&d)
	if p.told != nil {
		*p.told = wants{}
		into = p.told
	}
	if status != http.StatusOK {
		return false, fmt.Errorf("status %d: %.300s", status, p.body)
	}
	if err := json.Unmarshal(p.body, into); err != nil {
		return false, err
	}
	if p.told != nil {
		d.ETag = p.told.ETag
	}
	changed = d.ETag != p.etag
	p.etag, p.body = d.ETag, nil
	return changed, nil
}
