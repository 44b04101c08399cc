package setup

import (
	"archive/tar"
	"bytes"
	"fmt"
	"path/filepath"
	"strings"

	"chancery/internal/fault"
	"chancery/internal/pki/keyfile"
)

// maxMemberFile is more than any key, path or list of roots of a member has, and what its own side takes at most.
const maxMemberFile = 64 << 10

// memberEntries are what the file for one member holds after its name: each entry's name there, and what file of ServerDir it is, in which an
// initial dash stands for the member's name. deploy/patroni/chancery-member-rescue takes these and no others, in this order.
var memberEntries = []struct{ entry, file string }{
	{"server.key", "-.key"}, {"server.crt", "-.crt"}, {"client.key", "--client.key"}, {"client.crt", "--client.crt"}, {"roots.crt", "roots.crt"},
	{"peer.key", "--peer.key"}, {"peer.crt", "--peer.crt"}, {"peer-roots.crt", "peer-roots.crt"},
}

// checkServers refuses names of members that would have the files of one overwrite another's.
func checkServers(servers []string) error {
	taken := map[string]string{"roots": "the roots", "peer-roots": "the roots"}
	for _, server := range servers {
		called := strings.Split(server, "/")
		for _, name := range called {
			if name == "" || name == "." || name == ".." {
				return fault.New(fault.Invalid, "%q names no server; NAME or NAME/OTHER-NAME/ADDRESS would pass", server)
			}
		}
		for _, suffix := range []string{"", "-client", "-peer"} {
			if whose, is := taken[called[0]+suffix]; is {
				return fault.New(fault.Invalid, "the files of the server %s would be called %s%s, as those of %s are; another name would pass", called[0], called[0], suffix, whose)
			}
		}
		for _, suffix := range []string{"", "-client", "-peer"} {
			taken[called[0]+suffix] = "the server " + called[0]
		}
	}
	return nil
}

// packMembers writes all that a member needs into one file, so that one copy and one command put it there. It holds keys, and so is its
// owner's alone. Run again with the same files, it leaves it as it is.
func (o *ExpiredOptions) packMembers(done *Brought) error {
	for _, server := range o.Servers {
		name, _, _ := strings.Cut(server, "/")
		packed, err := o.packMember(name)
		if err != nil {
			return fmt.Errorf("pack the files of the server %s: %w", name, err)
		}
		path := filepath.Join(o.ServerDir, name+".tar")
		done.Files = append(done.Files, path)
		err = putMember(path, packed)
		clear(packed)
		if err != nil {
			return err
		}
	}
	return nil
}

func putMember(path string, packed []byte) error {
	if there, err := keyfile.ReadSecret(path, keyfile.MaxFile); err == nil {
		defer clear(there)
		if bytes.Equal(there, packed) {
			return nil
		}
	}
	return keyfile.ReplaceFile(path, packed, 0o600)
}

func (o *ExpiredOptions) packMember(name string) ([]byte, error) {
	packed := bytes.NewBuffer(make([]byte, 0, maxMemberFile)) // which no usual member's file outgrows: what grows leaves keys behind
	w := tar.NewWriter(packed)
	if err := addEntry(w, "member", []byte(name+"\n")); err != nil {
		return nil, err
	}
	for _, e := range memberEntries {
		file := e.file
		if rest, own := strings.CutPrefix(file, "-"); own {
			file = name + rest
		}
		text, err := keyfile.ReadFile(filepath.Join(o.ServerDir, file), maxMemberFile)
		if err != nil {
			return nil, err
		}
		err = addEntry(w, e.entry, text)
		clear(text)
		if err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return packed.Bytes(), nil
}

// addEntry adds a file that says nothing but what is in it: not whose it is, and not when it was made.
func addEntry(w *tar.Writer, name string, text []byte) error {
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o600, Size: int64(len(text)), Format: tar.FormatUSTAR}); err != nil {
		return err
	}
	_, err := w.Write(text)
	return err
}
