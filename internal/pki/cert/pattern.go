package cert

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// substitute replaces each ${variable} of a pattern by its values; several values make several patterns. Values must be
// literal: one that holds a pattern character is dropped, so that no entitlement widens a rule.
func substitute(pattern string, values func(name string) []string) ([]string, error) {
	start := strings.Index(pattern, "${")
	if start < 0 {
		return []string{pattern}, nil
	}
	length := strings.IndexByte(pattern[start:], '}')
	if length < 0 {
		return nil, fmt.Errorf("%q has ${ without }", pattern)
	}
	name := pattern[start+2 : start+length]
	if name == "" {
		return nil, fmt.Errorf("%q has a variable without a name", pattern)
	}
	rest, err := substitute(pattern[start+length+1:], values)
	if err != nil {
		return nil, err
	}
	var result []string
	for _, value := range values(name) {
		if value == "" || strings.ContainsAny(value, "*$") {
			continue
		}
		for _, tail := range rest {
			result = append(result, pattern[:start]+value+tail)
		}
	}
	return result, nil
}

// sampleText stands for a variable's value when a profile is checked.
const sampleText = "value"

func sampleValue(string) []string { return []string{sampleText} }

// glob matches with * as a run of characters none of which is in stop. It takes at most len(pattern) × len(text) steps.
func glob(pattern, text, stop string) bool {
	star, mark := -1, 0
	p, t := 0, 0
	for t < len(text) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, mark = p, t
			p++
		case p < len(pattern) && pattern[p] == text[t]:
			p++
			t++
		case star >= 0 && strings.IndexByte(stop, text[mark]) < 0:
			mark++
			p, t = star+1, mark
		default:
			return false
		}
	}
	for p < len(pattern) && pattern[p] == '*' {
		p++
	}
	return p == len(pattern)
}

func checkDNSPattern(pattern string) error {
	if pattern == "**" {
		return nil
	}
	rest := strings.TrimPrefix(strings.TrimPrefix(pattern, "**."), ".")
	if rest == "" || strings.Contains(rest, "**") {
		return errors.New("** stands for whole labels at the beginning only, as in **.example.com")
	}
	if err := CheckDNSName(strings.ReplaceAll(rest, "*", "a"), false); err != nil {
		return fmt.Errorf("pattern %q: %w", pattern, err)
	}
	return nil
}

// matchDNS reports whether a DNS name, which is no wildcard, matches the pattern.
func matchDNS(pattern, name string) bool {
	pattern, name = strings.ToLower(pattern), strings.ToLower(name)
	if strings.Contains(name, "*") {
		return false
	}
	if pattern == "**" {
		return true
	}
	tail, deep := strings.CutPrefix(pattern, "**.")
	if !deep {
		tail, deep = strings.CutPrefix(pattern, ".")
	}
	labels, wanted := strings.Split(name, "."), strings.Split(tail, ".")
	if len(labels) < len(wanted) || (deep && len(labels) == len(wanted)) || (!deep && len(labels) > len(wanted)) {
		return false
	}
	labels = labels[len(labels)-len(wanted):]
	for i, label := range labels {
		if !glob(wanted[i], label, "") {
			return false
		}
	}
	return true
}

func matchMailbox(pattern, mailbox string) bool {
	i, j := strings.LastIndexByte(pattern, '@'), strings.LastIndexByte(mailbox, '@')
	if i < 0 || j < 0 {
		return false
	}
	return glob(pattern[:i], mailbox[:j], "") && matchDNS(pattern[i+1:], mailbox[j+1:])
}

func matchIP(pattern, address string) bool {
	p, err := parsePrefix(pattern)
	if err != nil {
		return false
	}
	a, err := netip.ParseAddr(address)
	return err == nil && a.BitLen() == p.Addr().BitLen() && p.Contains(a)
}

// matchURI splits the pattern at ** and matches what is between by shorter wildcards; the first ** ends the careful part,
// since all that follows may be anything up to the pattern's tail.
func matchURI(pattern, uri string) bool {
	const stop = "/?#@:"
	head, tail, wide := strings.Cut(pattern, "**")
	if !wide {
		return glob(pattern, uri, stop)
	}
	for i := range len(uri) + 1 {
		if glob(head, uri[:i], stop) && matchURITail(tail, uri[i:]) {
			return true
		}
	}
	return false
}

func matchURITail(tail, text string) bool {
	return glob("*"+strings.ReplaceAll(tail, "**", "*"), text, "")
}
