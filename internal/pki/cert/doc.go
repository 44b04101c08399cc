// Package cert is RFC 5280 section 4 for a private PKI: names, extensions, the TBSCertificate encoder, serial numbers,
// lints, certification requests and profiles. Certification paths are checked by internal/pki/path.
//
// A certificate is made in one direction only: a [Template] is encoded to a [TBS] by [Build], the TBS is judged by
// [TBS.Lint], and the [Linted] value that comes of it is consumed by [Linted.Sign]. What was linted are the very octets
// that are signed, and nothing that was not linted can be signed. [Profile.Build] is the same road for what a caller
// asks for: a request's names are a wish, and what the caller is not entitled to is refused and named, all at once.
//
// Standards: RFC 5280 (certificates), RFC 6818 and RFC 9549 (its updates), RFC 4514 (names as text), RFC 4518 (their
// comparison), RFC 5890 and RFC 5891 (internationalised names), RFC 2986 and RFC 2985 (requests), RFC 5480, RFC 8410 and
// RFC 8813 (keys and their usages), RFC 7633 (TLS feature), RFC 6960 4.2.2.2.1 (nocheck), RFC 3820 (proxy certificates),
// RFC 7093 (key identifiers).
//
// Where we differ from RFC 5280, on purpose:
//   - 4.2.1.6: a dNSName may contain an underscore, since hosts of a fleet do; everything else is the preferred syntax.
//   - 4.2.1.6: a wildcard is the whole leftmost label or absent (RFC 9525 6.3); x400Address and ediPartyName are not
//     issued; a URI must not have dot segments.
//   - 4.2.1.10: masks of iPAddress constraints must be contiguous; ".example.com" in a dNSName constraint means what is
//     below example.com; a wildcard is excluded if any of what it stands for is.
//   - 4.2.1.10: a common name that reads as a DNS name is constrained as one where no dNSName is there, because
//     consumers fall back to it.
//   - 7.1: comparison folds case and compatibility forms of Unicode, and leaves out RFC 4518's rarer mappings.
//
// Everything in the package is pure but for the random numbers of serials and signatures: it reads no clock, no file and
// no network, and all of its values but [Linted] may be used by several goroutines as long as none changes them. A Linted
// is consumed atomically.
package cert
