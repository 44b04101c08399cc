package bench

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"time"
)

// target is what a load is put on. The clients of net/http would take more of the cores than the servers under test, so
// requests are written as octets and answers are read with no more understanding than their framing needs.
type target struct {
	address string
	tls     *tls.Config // nil for plain http
	once    bool        // a connection for each request, as the server closes them

	patience time.Duration // for an answer; zero means as long as for anything

	// prepare makes so many requests beforehand, where each is good for one call; expect is how many a second
	// the load before had.
	prepare func(n int) error
	expect  float64

	// request appends the next request to buf.
	request func(buf []byte, client int) ([]byte, error)
	// check looks at an answer; body is valid during the call only.
	check func(client, status int, body []byte) error

	begun func() // called when the measured time begins, where it is not nil
}

// leastExpected is how many requests a second are made at least, since the load before may have been short or disturbed.
const leastExpected = 5000

// measured is what a load found.
type measured struct {
	latencies latencies // of the answers that passed
	errors    int
	first     error // the first of the errors
	elapsed   time.Duration
	cpu       time.Duration // of this process, which is the load's
}

// rate is how many answers a second passed.
func (m *measured) rate() float64 {
	if m.elapsed <= 0 {
		return 0
	}
	return float64(len(m.latencies)) / m.elapsed.Seconds()
}

func (m *measured) merge(other *measured) {
	m.latencies = append(m.latencies, other.latencies...)
	m.errors += other.errors
	m.elapsed += other.elapsed
	m.cpu += other.cpu
	if m.first == nil {
		m.first = other.first
	}
}

// put keeps clients busy for a while.
func (t *target) put(ctx context.Context, clients int, length time.Duration) (*measured, error) {
	if err := t.stock(clients, length); err != nil {
		return nil, err
	}
	return t.run(ctx, clients, length)
}

// stock makes what requests have to be there for run.
func (t *target) stock(clients int, length time.Duration) error {
	if t.prepare == nil {
		return nil
	}
	return t.prepare(int(max(3*t.expect, leastExpected)*length.Seconds()) + 4*clients)
}

// run is put with what was made. All connect, and make one call, before the measured time begins.
func (t *target) run(ctx context.Context, clients int, length time.Duration) (*measured, error) {
	all := make([]*caller, clients)
	var ready, done sync.WaitGroup
	begin := make(chan struct{})
	var end time.Time // set before begin is closed
	for i := range all {
		c := &caller{target: t, number: i}
		all[i] = c
		ready.Add(1)
		done.Go(func() {
			defer c.close()
			c.err = c.begin()
			ready.Done()
			<-begin
			if c.err == nil {
				c.err = c.repeat(ctx, end)
			}
		})
	}
	ready.Wait()
	if t.begun != nil {
		t.begun()
	}
	before, err := ownTime()
	if err != nil {
		return nil, err
	}
	start := time.Now()
	end = start.Add(length)
	close(begin)
	done.Wait()
	sum := &measured{}
	for _, c := range all {
		if c.err != nil {
			return nil, fmt.Errorf("client %d of %s: %w", c.number, t.address, c.err)
		}
		sum.merge(&c.found)
	}
	sum.elapsed = time.Since(start)
	after, err := ownTime()
	if err != nil {
		return nil, err
	}
	sum.cpu = after - before
	t.expect = sum.rate()
	if len(sum.latencies) == 0 {
		return nil, fmt.Errorf("no answer of %s passed: %w", t.address, sum.first)
	}
	return sum, ctx.Err()
}

// keep puts the load on in rounds, one at once after the other, until over is closed or ctx has ended. A round that cannot begin is one error at least.
func (t *target) keep(ctx context.Context, clients int, round time.Duration, over <-chan struct{}) *measured {
	sum, begin := &measured{}, time.Now()
	for {
		m, err := t.put(ctx, clients, round)
		if err != nil {
			m = &measured{errors: 1, first: err}
			_ = pause(ctx, 10*time.Millisecond)
		}
		sum.merge(m)
		select {
		case <-over:
		case <-ctx.Done():
		default:
			continue
		}
		sum.elapsed = time.Since(begin)
		return sum
	}
}

// caller is one client with its connection.
type caller struct {
	*target
	number int
	conn   net.Conn
	reader *bufio.Reader
	buf    []byte // the request
	body   []byte // the answer
	found  measured
	err    error // what ended it
}

// begin makes the call before the measured time; one that does not pass is counted all the same, and made again a few times.
func (c *caller) begin() (err error) {
	for range 3 {
		if err = c.call(); err == nil {
			return nil
		}
		c.close()
		c.fail(err)
	}
	return err
}

// fail counts an answer that did not pass.
func (c *caller) fail(err error) {
	if c.found.errors++; c.found.first == nil {
		c.found.first = err
	}
}

// repeat calls once, and then until end, so that a round in which this process had no turn is not one without a call. An answer that does not pass is counted; a connection that breaks is made anew.
func (c *caller) repeat(ctx context.Context, end time.Time) error {
	for first := true; ctx.Err() == nil; first = false {
		start := time.Now()
		if !first && !start.Before(end) {
			return nil
		}
		err := c.call()
		if err == nil {
			c.found.latencies = append(c.found.latencies, time.Since(start))
			continue
		}
		c.close()
		c.fail(err)
		if errors.Is(err, errExhausted) {
			return err
		}
	}
	return ctx.Err()
}

// errExhausted ends a load that has no more requests to send.
var errExhausted = errors.New("all requests that were made beforehand are used")

// waits is how long an answer may take.
func (t *target) waits() time.Duration {
	if t.patience == 0 {
		return patience
	}
	return t.patience
}

func (c *caller) connect() error {
	conn, err := net.DialTimeout("tcp", c.address, c.waits())
	if err != nil {
		return err
	}
	if c.tls != nil {
		conn = tls.Client(conn, c.tls)
	}
	c.conn = conn
	if c.reader == nil {
		c.reader = bufio.NewReaderSize(conn, 16<<10)
	}
	c.reader.Reset(conn)
	return nil
}

func (c *caller) close() {
	if c.conn != nil {
		c.conn.Close()
		c.conn = nil
	}
}

func (c *caller) call() (err error) {
	if c.buf, err = c.request(c.buf[:0], c.number); err != nil {
		return err
	}
	if c.conn == nil {
		if err := c.connect(); err != nil {
			return err
		}
	}
	if err := c.conn.SetDeadline(time.Now().Add(c.waits())); err != nil {
		return err
	}
	if _, err := c.conn.Write(c.buf); err != nil {
		return err
	}
	status, err := c.answer()
	if err != nil {
		return err
	}
	if c.once {
		c.close()
	}
	return c.check(c.number, status, c.body)
}

// answer reads one HTTP/1 response into c.body.
func (c *caller) answer() (status int, err error) {
	line, err := c.reader.ReadSlice('\n')
	if err != nil {
		return 0, err
	}
	if len(line) < 12 || !bytes.HasPrefix(line, []byte("HTTP/1.")) {
		return 0, fmt.Errorf("the answer begins with %.40q", line)
	}
	if status, err = strconv.Atoi(string(line[9:12])); err != nil {
		return 0, err
	}
	length, chunked := -1, false
	for {
		line, err := c.reader.ReadSlice('\n')
		if err != nil {
			return 0, err
		}
		line = bytes.TrimRight(line, "\r\n")
		if len(line) == 0 {
			break
		}
		if value, ok := header(line, "content-length:"); ok {
			if length, err = strconv.Atoi(string(value)); err != nil {
				return 0, err
			}
		}
		if value, ok := header(line, "transfer-encoding:"); ok && bytes.Equal(value, []byte("chunked")) {
			chunked = true
		}
	}
	c.body = c.body[:0]
	switch {
	case status == 204, status == 304: // which have no body, whatever their length would be
		return status, nil
	case chunked:
		return status, c.readChunks()
	case length >= 0:
		return status, c.readBody(length)
	case c.once:
		c.body, err = io.ReadAll(c.reader)
		return status, err
	}
	return 0, errors.New("the answer has no length")
}

// header returns the value of a header line, where it is of the name, which is in lower case and ends in a colon.
func header(line []byte, name string) ([]byte, bool) {
	if len(line) < len(name) || !bytes.EqualFold(line[:len(name)], []byte(name)) {
		return nil, false
	}
	return bytes.TrimSpace(line[len(name):]), true
}

func (c *caller) readBody(n int) error {
	at := len(c.body)
	if cap(c.body) < at+n {
		c.body = append(make([]byte, 0, 2*(at+n)), c.body...)
	}
	c.body = c.body[:at+n]
	_, err := io.ReadFull(c.reader, c.body[at:])
	return err
}

func (c *caller) readChunks() error {
	for {
		line, err := c.reader.ReadSlice('\n')
		if err != nil {
			return err
		}
		n, err := strconv.ParseUint(string(bytes.TrimSpace(line)), 16, 31)
		if err != nil {
			return fmt.Errorf("chunk of length %.20q", line)
		}
		if n > 0 {
			if err := c.readBody(int(n)); err != nil {
				return err
			}
		}
		if _, err := c.reader.ReadSlice('\n'); err != nil {
			return err
		}
		if n == 0 {
			return nil // no trailers are sent by what is measured here
		}
	}
}

// post begins a POST request up to its body.
func post(host, path, contentType string, length int) string {
	return "POST " + path + " HTTP/1.1\r\nHost: " + host + "\r\nContent-Type: " + contentType + "\r\nContent-Length: " + strconv.Itoa(length) + "\r\n"
}

func get(host, path string) string { return "GET " + path + " HTTP/1.1\r\nHost: " + host + "\r\n\r\n" }
