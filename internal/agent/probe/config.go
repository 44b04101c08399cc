package probe

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"chancery/internal/fault"
)

// Bounds of what is read of a configuration: one file, all files together, their number (a web server may have hundreds of
// sites), and how deep they include each other.
const (
	configFile  = 1 << 20
	configTotal = 16 << 20
	configFiles = 1000
	configDepth = 10
	configNames = 2000 // settings that are kept
)

// settings are what a configuration says: the names are as its program compares them.
type settings map[string]string

// readConfig reads a configuration file of the host.
func readConfig(sys System, path, syntax string) (settings, error) {
	r := &configReader{sys: sys, out: settings{}}
	var read func(path string, text []byte) error
	switch syntax {
	case "libvirt":
		read = r.libvirt
	case "postgresql":
		read = r.postgresql
	case "nginx":
		read, r.base = r.nginx, path
	case "systemd":
		read = r.systemd
	default:
		return nil, fault.New(fault.Invalid, "syntax: %q is none of libvirt, postgresql, nginx and systemd", syntax)
	}
	err := r.file(path, read)
	switch {
	case syntax == "systemd" && (err == nil || errors.Is(err, fs.ErrNotExist)):
		err = r.dropIns(path)
	case syntax == "postgresql" && err == nil:
		err = r.alterSystem(path)
	}
	return r.out, err
}

// configReader collects the settings of a file and of those that it includes.
type configReader struct {
	sys   System
	base  string // nginx resolves relative includes against the main file's directory
	out   settings
	files int
	total int
	depth int
}

// file reads one file whole and hands it to read.
func (r *configReader) file(path string, read func(string, []byte) error) error {
	if r.files++; r.files > configFiles {
		return fmt.Errorf("%s: more than %d files are included", path, configFiles)
	}
	if r.depth++; r.depth > configDepth {
		return fmt.Errorf("%s: files include each other more than %d deep", path, configDepth)
	}
	defer func() { r.depth-- }()
	text, err := readBounded(r.sys.Path(path), configFile)
	if err != nil {
		return err
	}
	if r.total += len(text); r.total > configTotal {
		return fmt.Errorf("%s: the files that are included have more than %d octets", path, configTotal)
	}
	return read(path, text)
}

// set keeps a setting, but for what may hold a secret: facts are reported to the authority.
func (r *configReader) set(name, value string, first bool) {
	if secretSetting(name) || plain(value) != nil || plain(name) != nil {
		delete(r.out, name)
		return
	}
	if _, there := r.out[name]; there && first || !there && len(r.out) >= configNames {
		return
	}
	r.out[name] = value
}

// secretSetting tells by a setting's name that its value is nobody's business.
func secretSetting(name string) bool {
	name = strings.ToLower(name)
	for _, word := range []string{"password", "passphrase", "passwd", "secret", "conninfo", "token", "credential"} {
		if strings.Contains(name, word) && !strings.HasSuffix(name, "_file") && name != "server_tokens" && name != "password_encryption" {
			return true
		}
	}
	return false
}
