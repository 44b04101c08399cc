// Package certtool reads the templates of GnuTLS certtool and prints certificates and CRLs in its form, so that the
// templates and scripts that operators have go on working. The reference is certtool 3.7.9, which the tests run.
//
// # Modes
//
// certtool's template language drops much silently. In the Strict mode, the default, each such trap is a fault.Invalid
// refusal with line and column, the value, and what would pass. In the Compat mode a template means what certtool makes
// of it, with the same warnings. A template that Strict accepts means the same in both modes.
//
// What certtool 3.7.9 does, found by running it, and what Strict refuses:
//   - a character that cannot begin a name ends the template; the rest is lost,
//   - an unknown name is skipped with a warning, and a known one in other case (CN, Policy1), or any that begins with
//     "policy", without one,
//   - an option that may stand once is taken from its first line; of the others the 129th and later values are dropped,
//   - "o" beside "organization", and "ou" beside "unit", are dropped,
//   - a switch is on by presence: "ca = false" makes a CA; Strict takes no value, true, yes or 1,
//   - unquoted values keep blanks at the end, the CR of CRLF lines, and what was meant as a comment; a backslash in them
//     vanishes with the character behind it, unless it is the first character; before a line end it keeps the line end
//     and goes on,
//   - in quotes a backslash escapes the quote; before a line end it makes a blank; otherwise it vanishes with the
//     character behind it. A missing closing quote swallows the rest of the file,
//   - a number is what strtol makes of it ("soon" is 0), cut to 32 bits,
//   - expiration_days of 0, or below -2, is 365; of -2, two days ago; they count from now and not from activation_date,
//   - an expiration before the activation is accepted; expiration_date silently beats expiration_days,
//   - policies end at the first gap in their numbers,
//   - with tls_www_server the email names are dropped; cert_signing_key, crl_signing_key, path_len and the name
//     constraints count only with ca; with ca, and without tls_www_server, encryption_key and ipsec_ike_key are dropped,
//   - empty parts of a krb5_principal are dropped,
//   - add_extension and add_critical_extension of basicConstraints are dropped, and of other extensions that an option
//     decides; of a TLSFeature it drops the option; an extendedKeyUsage to which options add is not critical any more,
//   - subject_unique_id and issuer_unique_id are written, which RFC 5280 4.1.2.8 forbids.
//
// Also certtool's, but no trap, and so in both modes: ipsec_ike_key without signing_key adds non-repudiation to a key
// usage that is not empty; keys other than RSA get digitalSignature instead of keyEncipherment; email, DNS and other
// names are added to those of a request that is honoured; an extension that an option makes replaces the one that
// add_extension gave.
//
// # Divergences
//
// In both modes refused, though certtool writes something: serial numbers that come out negative (0xff),
// add_extension with an empty 0x value (certtool encodes uninitialised memory), object identifiers that DER cannot
// carry or that have leading zeros, text that is not ASCII in ASN.1 types of ASCII, a non-ASCII xmpp_name (certtool
// makes Punycode of the whole of it, against RFC 6120), otherName values that are not DER, empty names (certtool
// cannot read its own certificate again), empty qualifiers of policies, a dn over line ends, what is not UTF-8, NUL,
// dates before 1950 (certtool writes 1940 as 2040), the date forms that package gnudate names, and pointers or
// policies beside an extension of the same kind from add_extension or the request. With an empty subject the
// subjectAltName is critical, as RFC 5280 4.2.1.6 demands. Printed names have control characters, and marks that turn the
// direction of text, escaped, so that no certificate steers a terminal.
//
// RFCs: 5280 (certificate and CRL profile), 4514 (names as text), 3820 (proxy certificates), 4556 (Kerberos names), 6120
// (XMPP addresses), 7633 (TLS feature), 7469 (the printed pin). All functions are pure and safe for concurrent use.
package certtool
