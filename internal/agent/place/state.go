package place

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// state is how one file is to be, with every name looked up, so that a journal can be applied without asking anyone.
type state struct {
	Data []byte `json:"data,omitempty"`
	Link string `json:"link,omitempty"`
	attributes
	Changed time.Time `json:"changed,omitzero"` // when it was, of a file that is put back or copied

	same func([]byte) bool
}

// attributes are those of a file or a directory. A UID or GID of -1 is one that cannot be set here, and that does not
// matter in a comparison.
type attributes struct {
	Mode  fs.FileMode `json:"mode"`
	UID   int         `json:"uid"`
	GID   int         `json:"gid"`
	Label string      `json:"label,omitempty"`

	noLabel bool // the label could not be set here, and does not matter in a comparison
}

// found is the state that an entry is in.
func (e entry) found() *state {
	if !e.exists() {
		return nil
	}
	return &state{Data: e.data, Link: e.link, attributes: e.attributes(), Changed: e.changed}
}

func (e entry) attributes() attributes {
	return attributes{Mode: e.mode.Perm(), UID: e.uid, GID: e.gid, Label: e.label}
}

// digest is what the record keeps of a content.
func (s *state) digest() string {
	if s.Link != "" {
		return "link:" + s.Link
	}
	sum := sha256.Sum256(s.Data)
	return hex.EncodeToString(sum[:])
}

// differences says in what an entry differs from the state wanted; nil wants nothing there.
func (s *state) differences(e entry) []string {
	switch {
	case s == nil && !e.exists():
		return nil
	case s == nil:
		return []string{"is not wanted"}
	case !e.exists():
		return []string{"is missing"}
	case s.Link != "" && e.kind == unix.S_IFLNK && e.link == s.Link:
		return nil
	case s.Link != "":
		return []string{fmt.Sprintf("is %s, wanted a link to %s", kindName(e.kind), s.Link)}
	case e.kind != unix.S_IFREG:
		return []string{"is " + kindName(e.kind) + ", wanted a regular file"}
	}
	var words []string
	switch {
	case e.closed:
		words = append(words, "cannot be read")
	case !bytes.Equal(s.Data, e.data) && (s.same == nil || !s.same(e.data)):
		words = append(words, "has another content")
	}
	if e.names > 1 {
		words = append(words, fmt.Sprintf("has %d hard links, wanted one name", e.names))
	}
	return append(words, s.attributes.differences(e)...)
}

func (a attributes) differences(e entry) []string {
	var words []string
	if a.Mode != e.mode {
		words = append(words, fmt.Sprintf("has mode %04o, wanted %04o", e.mode, a.Mode))
	}
	if a.UID >= 0 && a.UID != e.uid {
		words = append(words, fmt.Sprintf("belongs to user %d, wanted %d", e.uid, a.UID))
	}
	if a.GID >= 0 && a.GID != e.gid {
		words = append(words, fmt.Sprintf("belongs to group %d, wanted %d", e.gid, a.GID))
	}
	if a.Label != "" && !a.noLabel && a.Label != e.label && !e.closed {
		words = append(words, fmt.Sprintf("has label %q, wanted %q", e.label, a.Label))
	}
	if e.listed {
		words = append(words, "has an access control list")
	}
	return words
}

func (s *state) matches(e entry) bool { return len(s.differences(e)) == 0 }

// owner looks an owner up, and cuts the mode down where it cannot be had: a group that the file cannot belong to must not
// hand its rights to the one that it belongs to instead.
func (p *Placer) owner(user, group string, mode fs.FileMode) (a attributes, unset []string, err error) {
	a.Mode = mode
	if a.UID, a.GID, err = p.account(user); err != nil {
		return a, nil, err
	}
	if group != "" {
		if a.GID, err = p.group(group); err != nil {
			return a, nil, err
		}
	}
	if p.system.AsRoot {
		return a, nil, nil
	}
	if a.UID != os.Geteuid() {
		unset = append(unset, fmt.Sprintf("owner %s cannot be set without root", orRoot(user)))
		a.UID = -1
	}
	groups, err := os.Getgroups()
	if err != nil {
		return a, nil, fmt.Errorf("list the groups of this process: %w", err)
	}
	if a.GID != os.Getegid() && !slices.Contains(groups, a.GID) {
		unset = append(unset, fmt.Sprintf("group %s cannot be set without root", orRoot(group)))
		a.GID = -1
		if rights := mode & 0o070 &^ (mode & 0o007 << 3); rights != 0 {
			a.Mode = mode &^ rights
			unset[len(unset)-1] += fmt.Sprintf(", so the mode is %04o and not %04o", a.Mode, mode)
		}
	}
	return a, unset, nil
}

func orRoot(name string) string {
	if name == "" {
		return "root"
	}
	return name
}

// foundAgain is the state to restore what is there, as far as this process can.
func (p *Placer) foundAgain(e entry) *state {
	s := e.found()
	if s == nil || p.system.AsRoot {
		return s
	}
	if s.UID != os.Geteuid() {
		s.UID = -1
	}
	if groups, err := os.Getgroups(); err != nil || s.GID != os.Getegid() && !slices.Contains(groups, s.GID) {
		s.GID = -1
		s.Mode &^= 0o070 &^ (s.Mode & 0o007 << 3)
	}
	return s
}

// account returns the numbers of a user and its own group. Root needs no lookup: it is the same in every root.
func (p *Placer) account(name string) (uid, gid int, err error) {
	if name == "" || name == "root" {
		return 0, 0, nil
	}
	if n, err := strconv.ParseUint(name, 10, 31); err == nil {
		return int(n), int(n), nil
	}
	u, err := p.system.User(name)
	return u.UID, u.GID, err
}

func (p *Placer) group(name string) (int, error) {
	if name == "root" {
		return 0, nil
	}
	if n, err := strconv.ParseUint(name, 10, 31); err == nil {
		return int(n), nil
	}
	return p.system.Group(name)
}

// dressNew is dress for what was just made. An access control list comes from its directory's default, and would give
// rights that the mode does not show as soon as the mode gives any.
func (f *file) dressNew(a *attributes) error {
	_, listed, err := f.attribute(listAttribute)
	if err == nil && listed {
		err = f.dropList()
	}
	if err != nil {
		return err
	}
	return f.dress(a)
}

// dress gives a file or directory its owner, mode and label, in this order. That a label cannot be had here is no error;
// noLabel says it afterwards.
func (f *file) dress(a *attributes) error {
	if a.UID >= 0 || a.GID >= 0 {
		if err := f.chown(a.UID, a.GID); err != nil {
			return err
		}
	}
	if err := f.chmod(a.Mode); err != nil {
		return err
	}
	if a.Label == "" {
		return nil
	}
	err := f.setLabel(a.Label)
	a.noLabel = err != nil
	for _, cannot := range []error{unix.EPERM, unix.EACCES, unix.ENOTSUP} {
		if errors.Is(err, cannot) {
			return nil
		}
	}
	return err
}

// entry is what is there when the state is.
func (s *state) entry() entry {
	if s == nil {
		return entry{}
	}
	e := entry{kind: unix.S_IFREG, mode: s.Mode, uid: s.UID, gid: s.GID, names: 1, label: s.Label, data: s.Data}
	if s.Link != "" {
		e = entry{kind: unix.S_IFLNK, link: s.Link}
	}
	return e
}
