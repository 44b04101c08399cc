// Package path checks certification paths (RFC 5280 section 6) and finds them.
//
// [Verify] judges a path that is given, [Build] finds one that is valid among certificates in whatever order. Policies are
// processed in full, by the graph of RFC 9618. Revocation is not judged here.
//
// Standards: RFC 5280 section 6, RFC 9618 (policies), RFC 5937 (what an anchor says about itself), RFC 4158 (building).
//
// Where we differ from RFC 5280, on purpose:
//   - 6.1: the anchor's own validity, basicConstraints, keyUsage, nameConstraints and extKeyUsage count (RFC 5937); every
//     CA that has an extKeyUsage must permit the purpose that is wanted; signatures by MD5, SHA-1 and DSA are refused
//     whatever the anchor says.
//   - 6.1: work is bounded: the certificates of a path, the candidates that Build looks at, and the names times the
//     constraints that are compared. What would take more is refused.
//
// The package is pure: it reads no clock, no file and no network, and may be used by several goroutines.
package path
