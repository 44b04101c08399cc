package recipe

import (
	"slices"
	"strings"

	"chancery/internal/fault"
)

func (b *builder) directories() {
	for _, d := range b.recipe.Directories {
		what := "directory " + d.Path
		if !b.applies(what, d.When) {
			continue
		}
		mode, err := parseMode(d.Mode, 0o755, 0o755)
		b.problem(what, err)
		p := PlannedDirectory{Mode: mode, Path: b.fill(what, d.Path, func(value string) error { return checkPath("directory", value) })}
		p.Owner, p.Group, p.Label = b.ownership(what, d.Owner, d.Group, d.Label)
		b.plan.Directories = append(b.plan.Directories, p)
	}
}

// ownership fills who owns a file. Without an owner it is root's and of the group root; an owner without a group means the
// owner's primary group.
func (b *builder) ownership(what, owner, group, label string) (string, string, string) {
	account := func(text string) string {
		value, err := b.values(nil).fill(text)
		if err == nil && value != "" {
			err = checkAccount(value)
		}
		b.problem(what, err)
		return value
	}
	owner, group, label = account(owner), account(group), b.optional(what, label, checkLabel)
	if owner == "" {
		owner = "root"
	}
	if group == "" && owner == "root" {
		group = "root"
	}
	return owner, group, label
}

func (b *builder) files() {
	for i := range b.recipe.Files {
		f := &b.recipe.Files[i]
		what := "file " + f.Path
		if !b.applies(what, f.When) {
			continue
		}
		mode, err := f.mode()
		b.problem(what, err)
		p := PlannedFile{
			Of: b.recipe.of(f), Content: slices.Clone(f.Content), Format: f.format(), Merge: f.Merge, Mode: mode,
			Path:         b.fill(what, f.Path, func(value string) error { return checkPath("file", value) }),
			PasswordFile: b.optional(what, f.PasswordFile, func(value string) error { return checkPath("password file", value) }),
			Alias:        b.optional(what, f.Alias, func(string) error { return nil }),
			TrustFlags:   b.optional(what, f.TrustFlags, checkTrustFlags),
		}
		p.Owner, p.Group, p.Label = b.ownership(what, f.Owner, f.Group, f.Label)
		if p.usesCertificate() && b.plan.Certificate(p.Of) == nil {
			b.problem(what, fault.New(fault.Conflict, "certificate %s, which it is of, is not wanted on this host", p.Of))
		}
		b.plan.Files = append(b.plan.Files, p)
	}
	if len(b.plan.Files) == 0 {
		b.problem("files", fault.New(fault.Conflict, "none is wanted on this host"))
	}
	// What no file of this host holds is not wanted here.
	b.plan.Trust.CRLs = b.plan.holds("crls")
	b.plan.Trust.Intermediates = b.plan.Trust.Intermediates && b.plan.holds("anchors")
	for _, c := range b.plan.Certificates {
		if !slices.ContainsFunc(b.plan.Files, func(f PlannedFile) bool { return f.Of == c.ID && f.Secret() }) {
			b.problem("certificate "+c.ID, fault.New(fault.Conflict, "its key goes into no file on this host"))
		}
	}
}

func (b *builder) steps() {
	for _, s := range b.recipe.Checks {
		if step, ok := b.step(s); ok {
			b.plan.Checks = append(b.plan.Checks, step)
		}
	}
	for _, s := range b.recipe.Reload {
		if step, ok := b.step(s); ok {
			b.plan.Reload = &step
			break
		}
	}
	for _, s := range b.recipe.After {
		if step, ok := b.step(s); ok {
			b.plan.After = append(b.plan.After, step)
		}
	}
}

func (b *builder) step(s Step) (Step, bool) {
	what := "step " + s.Name
	if !b.applies(what, s.When) {
		return s, false
	}
	s.When = ""
	var err error
	if s.Command != nil {
		s.Command, err = b.vector(s.Command)
		b.problem(what, err)
	}
	s.User = b.optional(what, s.User, checkUserAndGroup)
	if s.Signal != nil {
		signal := *s.Signal
		signal.PIDFile = b.fill(what, signal.PIDFile, func(value string) error { return checkPath("pid_file", value) })
		s.Signal = &signal
	}
	s.With = b.with(what, s.With)
	return s, true
}

// with fills what an action is given.
func (b *builder) with(what string, with map[string]string) map[string]string {
	if with == nil {
		return nil
	}
	filled := make(map[string]string, len(with))
	for key, text := range with {
		filled[key] = b.fill(what, text, func(value string) error {
			if isPathOfWith(key) {
				return checkPath(key, value)
			}
			if strings.HasPrefix(value, "-") {
				return fault.New(fault.Invalid, "%s is %q, which would be read as an option", key, value)
			}
			return printableText(key, value)
		})
	}
	return filled
}

func (b *builder) probe() {
	taken := b.recipe.Probe
	for taken != nil && !b.applies("probe", taken.When) {
		taken = taken.Else
	}
	if taken == nil {
		return
	}
	p := *taken
	p.When, p.Else = "", nil
	p.Address = b.optional("probe", p.Address, checkAddress)
	if p.StartTLS = b.optional("probe", p.StartTLS, checkStartTLS); p.StartTLS == "none" {
		p.StartTLS = ""
	}
	p.Names = nil
	for _, name := range taken.Names {
		p.Names = append(p.Names, b.each("probe", name, checkHost)...)
	}
	if p.Command != nil {
		var err error
		p.Command, err = b.vector(p.Command)
		b.problem("probe", err)
	}
	p.User = b.optional("probe", p.User, checkUserAndGroup)
	p.With = b.with("probe", p.With)
	p.Holds = b.optional("probe", p.Holds, func(value string) error { return checkPath("file", value) })
	if p.ClientCertificate != "" && b.plan.Certificate(p.ClientCertificate) == nil {
		b.problem("probe", fault.New(fault.Conflict, "certificate %s, which it shows, is not wanted on this host", p.ClientCertificate))
	}
	b.plan.Probe = &p
}

func (b *builder) notes() {
	for _, n := range b.recipe.Notes {
		if b.applies("note", n.When) {
			text, err := b.values(nil).fill(n.Text)
			b.problem("note", err)
			b.plan.Notes = append(b.plan.Notes, strings.TrimSpace(text))
		}
	}
}

// overlaps refuses two things at one path, and a file where a directory is to be.
func (b *builder) overlaps() {
	seen := map[string]string{}
	claim := func(path, what string) {
		if path == "" {
			return // refused already
		}
		if other := seen[path]; other != "" {
			b.problem(what+" "+path, fault.New(fault.Invalid, "%s is there already; give it another path", other))
		}
		seen[path] = what
	}
	for _, d := range b.plan.Directories {
		claim(d.Path, "directory")
	}
	own := func(f PlannedFile) bool { return f.Format == "certdir" || f.Format == "nss" } // with directories' owner and mode
	for _, f := range b.plan.Files {
		if !own(f) || seen[f.Path] != "directory" {
			claim(f.Path, "file")
		}
	}
	for _, f := range b.plan.Files {
		if f.PasswordFile != "" && seen[f.PasswordFile] != "" && seen[f.PasswordFile] != "password file" {
			claim(f.PasswordFile, "password file")
		}
		for _, other := range b.plan.Paths() {
			if other != f.Path && !own(f) && within(f.Path, other) {
				b.problem("file "+other, fault.New(fault.Invalid, "it would be below the file %s", f.Path))
			}
		}
	}
}

// Certificate returns the certificate with the identifier, nil where the plan has none such.
func (p *Plan) Certificate(id string) *PlannedCertificate {
	for i := range p.Certificates {
		if p.Certificates[i].ID == id {
			return &p.Certificates[i]
		}
	}
	return nil
}

func (p *Plan) holds(content string) bool {
	return slices.ContainsFunc(p.Files, func(f PlannedFile) bool { return slices.Contains(f.Content, content) })
}

// Paths are the paths of all files and directories of the plan, and of the password files of its key stores.
func (p *Plan) Paths() []string {
	var paths []string
	for _, d := range p.Directories {
		paths = append(paths, d.Path)
	}
	for _, f := range p.Files {
		paths = append(paths, f.Path)
		if f.PasswordFile != "" {
			paths = append(paths, f.PasswordFile)
		}
	}
	slices.Sort(paths)
	return slices.Compact(paths)
}

// usesCertificate reports whether something of one certificate is in the file.
func (f PlannedFile) usesCertificate() bool {
	return ofCertificate(f.Content)
}
