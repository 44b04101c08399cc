package recipe

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// does says a step, with its texts as text says them.
func (s *Step) does(text func(string) string) string {
	switch {
	case s.Signal != nil:
		return fmt.Sprintf("SIG%s to %s, whose number is in %s", s.Signal.Signal, s.Signal.Process, text(s.Signal.PIDFile))
	case s.Action != "":
		return sayAction(s.Action, s.With, text)
	}
	return sayCommand(s.Command, s.User, text)
}

func sayAction(name string, given map[string]string, text func(string) string) string {
	var with []string
	for _, key := range slices.Sorted(maps.Keys(given)) {
		with = append(with, key+" "+text(given[key]))
	}
	if with == nil {
		return name
	}
	return name + " (" + strings.Join(with, ", ") + ")"
}

func sayCommand(command []string, user string, text func(string) string) string {
	var words []string
	for _, word := range command {
		words = append(words, text(word))
	}
	said := strings.Join(words, " ")
	if user = text(user); user != "" && user != "root" {
		said += " (run as " + user + ")"
	}
	return said
}

func (e *explainer) probe() string {
	var all []string
	for p := e.recipe.Probe; p != nil; p = p.Else {
		when, possible := e.when(p.When)
		if !possible {
			continue
		}
		all = append(all, prefixed(when, p.says(e.text)))
		if when == "always" {
			break
		}
	}
	if all == nil {
		return notProbed
	}
	return strings.Join(all, "; else ")
}

const notProbed = "none: placed, not probed"

// says is a probe in words.
func (p *Probe) says(text func(string) string) string {
	if p == nil {
		return notProbed
	}
	if len(p.Command) > 0 {
		return sayCommand(p.Command, p.User, text) + " succeeds"
	}
	if p.Action != "" {
		return sayAction(p.Action, p.With, text)
	}
	if p.Holds != "" {
		return text(p.Holds) + ", which the reload makes, holds every anchor"
	}
	said := text(p.Address) + " serves the new certificate over TLS"
	if start := text(p.StartTLS); start != "" && start != "none" {
		said += " after STARTTLS of " + start
	}
	if p.ClientCertificate != "" {
		said += "; it is shown the certificate " + p.ClientCertificate
	}
	if p.AcceptRefusal {
		said += "; the consumer may refuse the probe after it has shown its own"
	}
	return said
}

// Explain says the plan in words. Nothing in it is conditional.
func (p *Plan) Explain() *Explanation {
	literally := func(text string) string { return text }
	x := &Explanation{Name: p.Recipe, AllowList: p.AllowList, Notes: p.Notes, Probe: p.Probe.says(literally), Trust: p.Trust.says(p.Trust.Purpose)}
	for _, c := range p.Certificates {
		x.Certificates = append(x.Certificates, ExplainedLeaf{ID: c.ID, Profile: c.Profile, Subject: c.Subject, Names: c.Names, Usages: c.Usages, Announced: c.Announce})
		x.Keys = append(x.Keys, ExplainedKey{Certificate: c.ID, Algorithm: c.Algorithm, Encoding: sayEncoding(c.Encoding), Pinned: c.Pinned})
	}
	x.Trust = append(x.Trust, sayAnnounced(x.Certificates)...)
	for _, d := range p.Directories {
		x.Directories = append(x.Directories, ExplainedPath{Path: d.Path, Owner: d.Owner, Group: d.Group, Label: d.Label,
			Mode: fmt.Sprintf("%04o", d.Mode.Perm())})
	}
	for _, f := range p.Files {
		file := ExplainedPath{Path: f.Path, Content: f.Content, Format: f.Format, Merge: f.Merge, PasswordFile: f.PasswordFile, Owner: f.Owner, Group: f.Group,
			Label: f.Label, Mode: fmt.Sprintf("%04o", f.Mode.Perm())}
		if f.usesCertificate() && len(p.Certificates) > 1 {
			file.Of = f.Of
		}
		x.Files = append(x.Files, file)
	}
	if x.Reader = p.User; p.Group != "" {
		x.Reader += ":" + p.Group
	}
	add := func(stage string, s *Step) {
		x.Steps = append(x.Steps, ExplainedStep{Stage: stage, Name: s.Name, Does: s.does(literally), Interrupts: s.Interrupts, Because: s.Because})
	}
	for i := range p.Checks {
		add("check", &p.Checks[i])
	}
	if p.Reload != nil {
		add("reload", p.Reload)
	}
	for i := range p.After {
		add("after", &p.After[i])
	}
	return x
}

func sayEncoding(encoding string) string {
	if encoding == "traditional" {
		return "PKCS#1 or SEC 1"
	}
	return "PKCS#8"
}

// says is the trust in words; purpose is what it is for.
func (t Trust) says(purpose string) []string {
	var said []string
	if purpose != "" && purpose != general {
		said = append(said, "what is trusted is the pool's set for "+purpose)
	}
	if t.Intermediates {
		said = append(said, "the trust holds the root and the issuers below it")
	}
	if t.CRLs {
		said = append(said, "there is a CRL of every issuer of the path, the root's too, and it is renewed well before nextUpdate")
	}
	if t.MaxCertificates > 0 {
		said = append(said, fmt.Sprintf("the consumer reads at most %d certificates of a file", t.MaxCertificates))
	}
	if t.MaxBytes > 0 {
		said = append(said, fmt.Sprintf("the consumer reads files of at most %d octets", t.MaxBytes))
	}
	return said
}
