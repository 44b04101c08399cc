package chaos

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// The acts of a history.
const (
	Issue  = "issue"
	Revoke = "revoke"
	OCSP   = "ocsp"
	CRL    = "crl"
	Turn   = "turn"   // promote and demote
	Signer = "signer" // somebody saw who holds a lease in which epoch
	Pulse  = "pulse"  // the member beside a node was asked whether it lives
	Fault  = "fault"  // from when it struck until it was healed
)

// The outcomes of a call.
const (
	Acknowledged = "acknowledged"
	Refused      = "refused" // by every attempt, and each was told that nothing was changed
	Unknown      = "unknown"
)

// Call is one line of a history: a call of a client with all its attempts, or what else happened. Which fields are set depends on the act.
type Call struct {
	Act      string    `json:"act"`
	Client   string    `json:"client,omitempty"`
	Begin    time.Time `json:"begin"`
	Last     time.Time `json:"last,omitzero"` // when its last attempt began
	End      time.Time `json:"end"`
	Attempts int       `json:"attempts,omitempty"`
	Node     string    `json:"node,omitempty"` // of the last attempt; which one was struck
	Life     int       `json:"life,omitempty"` // how often that node had been started when the call began
	Outcome  string    `json:"outcome,omitempty"`
	Error    string    `json:"error,omitempty"` // of the last attempt

	Name   string `json:"name,omitempty"`   // of the certificate that is asked for; of a lease; of a fault
	Reason string `json:"reason,omitempty"` // for which it shall be revoked
	Serial string `json:"serial,omitempty"` // in lower-case hexadecimal without leading zeros
	Issuer string `json:"issuer,omitempty"`

	Status string        `json:"status,omitempty"`  // good, revoked or unknown
	Age    time.Duration `json:"age,omitempty"`     // how old the node says its data are
	CutOff bool          `json:"cut_off,omitempty"` // nobody else could be reached from the node, from before the call until after it

	Stopped string `json:"stopped,omitempty"` // the node that a fault stopped, by itself or with its machine
	Budget  string `json:"budget,omitempty"`  // what the time from a fault to the next issuance is held against

	Number     int64     `json:"number,omitempty"` // CRLNumber
	ThisUpdate time.Time `json:"this_update,omitzero"`
	Digest     string    `json:"digest,omitempty"`  // of the CRL's octets
	Entries    int       `json:"entries,omitempty"` // that it has

	Epoch  int64  `json:"epoch,omitempty"`
	Holder string `json:"holder,omitempty"`
}

// Certificate is one that the authority has at the end.
type Certificate struct {
	Serial, Issuer, Name, State string
	Reason                      string // for which it is revoked
}

// List is the complete CRL that a node serves at the end.
type List struct {
	Number  int64
	Reasons map[string]string // by serial
}

// Event is one of the audit, as far as its chain is concerned.
type Event struct {
	Node       string
	Seq        int64
	Prev, Hash string
}

// Final is what the authority says of itself after all was healed.
type Final struct {
	Certificates []Certificate
	OCSP         map[string]map[string]string // by node, by serial of what was revoked: the status
	CRL          map[string]List              // by node
	Audit        []Event                      // by node, in the order of seq
	Findings     []string                     // errors of chancery verify
	Verified     int                          // what verify found right
	Parted       bool                         // nodes were cut off from all others, and did not just stand still
}

// history is the file of calls while they happen, and all of them.
type history struct {
	mu   sync.Mutex // guards what follows
	out  *bufio.Writer
	file *os.File
	all  []Call
}

func newHistory(path string) (*history, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	return &history{file: f, out: bufio.NewWriter(f)}, nil
}

func (h *history) add(c Call) error {
	line, err := json.Marshal(c)
	if err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.all = append(h.all, c)
	_, err = h.out.Write(append(line, '\n'))
	return err
}

// calls are those so far.
func (h *history) calls() []Call {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.all[:len(h.all):len(h.all)]
}

// written reads what the file has by now, which is what is judged.
func (h *history) written() ([]Call, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.out.Flush(); err != nil {
		return nil, err
	}
	f, err := os.Open(h.file.Name())
	if err != nil {
		return nil, err
	}
	defer f.Close()
	all, err := ReadHistory(bufio.NewReader(f))
	if err == nil && len(all) != len(h.all) {
		err = fmt.Errorf("%s has %d calls, and there were %d", h.file.Name(), len(all), len(h.all))
	}
	return all, err
}

func (h *history) close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return errors.Join(h.out.Flush(), h.file.Close())
}

// ReadHistory reads a file of calls.
func ReadHistory(r io.Reader) (all []Call, err error) {
	for d := json.NewDecoder(r); ; {
		var c Call
		if err := d.Decode(&c); errors.Is(err, io.EOF) {
			return all, nil
		} else if err != nil {
			return nil, fmt.Errorf("call %d of the history: %w", len(all)+1, err)
		}
		all = append(all, c)
	}
}
