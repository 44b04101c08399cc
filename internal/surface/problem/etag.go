package problem

import (
	"strings"

	"chancery/internal/fault"
)

// ETag writes a strong entity tag (RFC 9110 §8.8.3).
func ETag(version string) string { return `"` + version + `"` }

// Match checks an If-Match header against the current tag (RFC 9110 §13.1.1): a caller that names a version acts on no
// other. An absent header matches.
func Match(ifMatch, current string) error {
	if ifMatch == "" || listed(ifMatch, current, false) {
		return nil
	}
	return fault.New(fault.Conflict, "If-Match names version %s, and the current one is %s", ifMatch, current).
		WithHint("read it again, and apply the change to what it says now")
}

// NoneMatch reports whether an If-None-Match header names the current tag, so that 304 is the answer (RFC 9110 §13.1.2).
func NoneMatch(ifNoneMatch, current string) bool {
	return ifNoneMatch != "" && listed(ifNoneMatch, current, true)
}

// listed looks for a tag in a header's list; weak comparison takes W/"x" for "x".
func listed(header, tag string, weak bool) bool {
	for part := range strings.SplitSeq(header, ",") {
		part = strings.TrimSpace(part)
		if weak {
			part = strings.TrimPrefix(part, "W/")
		}
		if part == "*" || part == tag {
			return true
		}
	}
	return false
}
