package loop

import (
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"chancery/client"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/checkpoint"
	"chancery/internal/pki/keyfile"
)

// Status is what a host knows of its agent, read from the state directory alone: nothing is locked, written or reached.
type Status struct {
	State        string            `json:"state"`
	Root         string            `json:"root,omitempty"`
	Host         string            `json:"host,omitempty"` // empty: it has not joined
	Address      string            `json:"address,omitempty"`
	Generation   int64             `json:"generation,omitempty"`
	IdentityEnds time.Time         `json:"identity_ends,omitzero"`
	IdentityDue  time.Time         `json:"identity_due,omitzero"`
	Running      bool              `json:"running"` // an agent holds the lock
	Checkpoint   int64             `json:"checkpoint,omitempty"`
	Trust        int64             `json:"trust,omitempty"` // the version of the trust set that was last told
	Placements   []PlacementStatus `json:"placements,omitempty"`
	Wrong        []string          `json:"wrong,omitempty"`
}

// PlacementStatus is one placement of a Status.
type PlacementStatus struct {
	Name   string `json:"name"`
	Recipe string `json:"recipe"`
	// Gone says that the authority does not list it any more; Offline, that it was made by hand.
	Gone     bool               `json:"gone,omitempty"`
	Offline  bool               `json:"offline,omitempty"`
	Wanted   []string           `json:"wanted,omitempty"`    // certificates that were asked for and are not there
	Issuer   string             `json:"issuer,omitempty"`    // the name of the issuer of what is placed, where it is known here
	Waiting  []string           `json:"announced,omitempty"` // serials of certificates that wait until all who pin them hold them
	Observed client.Observation `json:"observed"`
}

// Look reads the status of a state directory at the instant now.
func Look(dir string, now time.Time) (*Status, error) {
	s, err := lookState(dir)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(s.dir); err != nil {
		return nil, err
	}
	settled, err := s.settings()
	if err != nil {
		return nil, err
	}
	status := &Status{State: s.dir, Root: settled.Root, Running: s.locked()}
	if err := status.lookIdentity(s, now); err != nil {
		return nil, err
	}
	names, err := s.folders()
	if err != nil {
		return nil, err
	}
	issuers := status.lookTrust(s)
	for _, name := range names {
		p, err := s.lookPlacement(name)
		if err != nil {
			return nil, err
		}
		p.Issuer = issuers[p.Observed.Issuer]
		status.Placements = append(status.Placements, *p)
		status.judge(p, now)
	}
	return status, nil
}

func (status *Status) lookIdentity(s *State, now time.Time) error {
	id, err := s.loadIdentity()
	if err != nil {
		return err
	}
	if id == nil {
		return nil
	}
	leaf := id.pair.Leaf
	status.Host, status.Address, status.Generation = id.Host, id.Address, id.Generation
	status.IdentityEnds, status.IdentityDue = leaf.NotAfter, dueAt(leaf, id.Host+"/identity")
	if now.After(leaf.NotAfter) {
		status.Wrong = append(status.Wrong, "the identity of this host ended on "+leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	text, err := s.read(fileCheckpoint)
	if err != nil || text == nil {
		return err
	}
	if seen, err := checkpoint.Parse(text); err == nil {
		status.Checkpoint = seen.Number
	}
	return nil
}

// lookTrust are the names of the issuers that were last told of, by the fingerprints of their certificates. What cannot be read
// is asked for anew by the agent, which says so.
func (status *Status) lookTrust(s *State) map[string]string {
	d, err := s.lastDesired()
	if err != nil || d == nil {
		return nil
	}
	status.Trust = d.Trust.Version
	all := map[string]string{}
	for _, i := range d.Trust.Issuers {
		if block, _ := pem.Decode([]byte(i.PEM)); block != nil {
			all[hex.EncodeToString(client.Fingerprint(block.Bytes))] = i.Name
		}
	}
	return all
}

func (s *State) lookPlacement(name string) (*PlacementStatus, error) {
	folder, err := s.folder(name)
	if err != nil {
		return nil, err
	}
	r, err := folder.record()
	if err != nil {
		return nil, err
	}
	p := &PlacementStatus{Name: name, Recipe: r.Order.Recipe, Gone: r.Gone, Offline: r.Offline != nil, Observed: r.Observed}
	if p.Observed.State == "" {
		p.Observed.State = client.PlacementPending
	}
	for _, text := range p.Observed.Announced {
		if all, err := keyfile.ParseCertificates([]byte(text)); err == nil && len(all) > 0 {
			p.Waiting = append(p.Waiting, cert.FormatSerial(all[0].SerialNumber))
		}
	}
	files, err := s.list(dirPlacements, name)
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		if id, ok := strings.CutSuffix(file, suffixWanted); ok {
			p.Wanted = append(p.Wanted, id)
		}
	}
	return p, nil
}

// judge says what is wrong with a placement now; a certificate ends without anybody's doing.
func (status *Status) judge(p *PlacementStatus, now time.Time) {
	o := p.Observed
	switch {
	case p.Gone:
		status.Wrong = append(status.Wrong, p.Name+": it is not desired any more; its files are left as they are and are not renewed")
	case o.State == client.PlacementFailed:
		status.Wrong = append(status.Wrong, p.Name+": "+o.Message)
	case !o.NotAfter.IsZero() && now.After(o.NotAfter):
		status.Wrong = append(status.Wrong, p.Name+": its certificate ended on "+o.NotAfter.UTC().Format(time.RFC3339))
	case !p.Offline && !o.RekeyAt.IsZero() && now.After(o.RekeyAt.Add(24*time.Hour)):
		status.Wrong = append(status.Wrong, p.Name+": its certificate was to be re-keyed on "+o.RekeyAt.UTC().Format(time.RFC3339))
	}
}

// locked reports whether an agent holds the state directory. The kernel's list of locks is asked and no lock is taken: one
// that was held for an instant could keep an agent from starting.
func (s *State) locked() bool {
	var st syscall.Stat_t
	if err := syscall.Stat(s.path(fileLock), &st); err != nil {
		return false
	}
	text, err := os.ReadFile("/proc/locks")
	if err != nil {
		return false
	}
	suffix := fmt.Sprintf(":%d", st.Ino)
	device := fmt.Sprintf("%02x:%02x", unix.Major(st.Dev), unix.Minor(st.Dev))
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) >= 6 && f[1] == "FLOCK" && f[5] == device+suffix {
			return true
		}
	}
	return false
}
