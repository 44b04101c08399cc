package examine

import (
	"slices"
	"strings"
	"sync"

	"chancery/internal/upkeep/finding"
)

// Rule is something that is held against what is seen. Its ID is stable: monitoring may rely on it.
type Rule struct {
	ID    string
	Level finding.Level // of a finding that breaks it
	About string        // what is wrong
	Do    string        // what to do about it
}

// shared are rules that hold wherever a certificate is seen; Where lists the places.
type shared struct {
	Where string
	Rule
}

// Rules lists every rule, by ID.
func Rules() []Rule {
	var all []Rule
	for _, list := range [][]shared{certificateRules(), wireRules(), revocationRules(), fileRules(), hostRules()} {
		for _, s := range list {
			for where := range strings.FieldsSeq(s.Where) {
				r := s.Rule
				r.ID = where + "." + r.ID
				all = append(all, r)
			}
		}
	}
	slices.SortFunc(all, func(a, b Rule) int { return strings.Compare(a.ID, b.ID) })
	return all
}

// ruleIndex is Rules by ID, made once: a scan asks for them for each port.
var ruleIndex = sync.OnceValue(func() map[string]Rule {
	index := map[string]Rule{}
	for _, r := range Rules() {
		index[r.ID] = r
	}
	return index
})

func ruleOf(id string) (Rule, bool) {
	r, ok := ruleIndex()[id]
	return r, ok
}

const both = "wire file"

func certificateRules() []shared {
	return []shared{
		{both, Rule{"names.commonname", finding.Error, "the certificate has no subjectAltName, only a common name",
			"issue it again with the names in subjectAltName; Go, Java, OpenSSL and browsers do not look at the common name"}},
		{both, Rule{"names.mismatch", finding.Error, "the certificate is not for the name by which peers look for it",
			"issue it again with every name and address that peers use, or reach the service by a name that it has"}},
		{"wire", Rule{"names.address", finding.Warning, "the service was reached by an address, and the certificate names no address",
			"say by --servername which name is meant, or issue it again with the address if peers use that"}},
		{both, Rule{"times.expired", finding.Error, "the certificate has expired", "replace it now; a consumer that restarts may not start any more"}},
		{both, Rule{"times.future", finding.Error, "the certificate is not valid yet",
			"compare the clocks of this machine and of the issuer; libvirtd and QEMU stop over such a certificate"}},
		{both, Rule{"times.ends", finding.Warning, "most of the certificate's life is over, so a renewal was missed",
			"find out why it was not renewed, and renew it before it ends"}},
		{both, Rule{"usages.server", finding.Error, "extKeyUsage does not allow a server", "issue it again under a profile for servers"}},
		{both, Rule{"usages.key", finding.Error, "keyUsage lacks what the consumer demands", "issue it again under the profile of the consumer's recipe"}},
		{both, Rule{"usages.encipherment", finding.Warning, "keyEncipherment is said of a key that cannot do it",
			"issue it again without keyEncipherment (RFC 8813 section 3); peers that check keyUsage by key type refuse it"}},
		{both, Rule{"usages.critical", finding.Warning, "extKeyUsage is not critical, and the consumer passes over it then",
			"issue it again under the profile of the consumer's recipe, which has it critical"}},
		{"wire", Rule{"usages.ca", finding.Error, "a CA's certificate is used as a server's own", "give the server a certificate of its own"}},
		{both, Rule{"key.weak", finding.Error, "the key is too weak, or of a kind that is not taken", "make a new key, and a certificate for it"}},
		{both, Rule{"signature.weak", finding.Error, "the certificate is signed with SHA-1 or MD5", "issue it again; peers have refused such signatures for years"}},
		{both, Rule{"path.incomplete", finding.Error, "a certificate between what was given and the root is missing",
			"put the missing issuer behind the certificate that it issued; leave the root out"}},
		{both, Rule{"path.order", finding.Error, "the certificates are not in order: each must be followed by its issuer",
			"write the file in the order leaf, issuer, issuer's issuer; GnuTLS and Java do not sort"}},
		{"wire", Rule{"path.root", finding.Warning, "the root is sent along", "leave it out: peers have it or do not trust it, and each handshake carries it"}},
		{both, Rule{"path.extra", finding.Warning, "certificates that do not belong to the path are with it", "take them out; some peers refuse the path for them"}},
		{both, Rule{"path.duplicate", finding.Warning, "a certificate is there twice", "leave it once"}},
		{both, Rule{"path.refused", finding.Error, "the path breaks a rule of RFC 5280 section 6", "mend what the finding names, at the issuer"}},
		{both, Rule{"trust.untrusted", finding.Error, "the path ends in an authority that is not trusted",
			"install a certificate of an authority that is trusted, or add that authority to the pool's trust"}},
		{"wire", Rule{"trust.unknown", finding.Warning, "nothing that is trusted here reaches the certificate, and nothing else was given",
			"say by --trust what the peers trust, or look with a connection to the authority (--dir)"}},
		{both, Rule{"trust.selfsigned", finding.Warning, "the certificate is signed by itself", "replace it by one of the authority; peers that pin it must be told first"}},
		{both, Rule{"trust.anchor", finding.Error, "a certificate of the trust file is expired, not valid yet, or no CA's",
			"take it out of the trust file; one such certificate stops libvirtd and QEMU"}},
	}
}

func wireRules() []shared {
	return []shared{
		{"wire", Rule{"connect.name", finding.Error, "the name has no address", "mend the name, or DNS"}},
		{"wire", Rule{"connect.refused", finding.Error, "nothing listens there", "start the service, or look at the port that it listens on"}},
		{"wire", Rule{"connect.unreachable", finding.Error, "no connection comes about", "look at routes and packet filters between here and there"}},
		{"wire", Rule{"tls.none", finding.Error, "the port does not speak TLS", "turn TLS on in the service, or say by --starttls how it begins"}},
		{"wire", Rule{"tls.slow", finding.Error, "the handshake does not end in time", "look at the load of the service; one that is stuck has to be restarted"}},
		{"wire", Rule{"tls.handshake", finding.Error, "the handshake fails", "look into the log of the service for the same moment"}},
		{"wire", Rule{"tls.version", finding.Error, "the service knows nothing newer than TLS 1.1", "turn TLS 1.2 and 1.3 on in the service (RFC 8996)"}},
		{"wire", Rule{"tls.old", finding.Warning, "the service still accepts TLS 1.1 or 1.0", "turn them off in the service (RFC 8996)"}},
		{"wire", Rule{"certificate.unreadable", finding.Error, "what is served is no certificate that can be read", "install a certificate that openssl x509 reads"}},
		{"wire", Rule{"client.refused", finding.Error, "the service refuses the client certificate that was shown",
			"look whether the service trusts its issuer, has its CRL, and allows its name"}},
		{"wire", Rule{"clock.differs", finding.Warning, "the service's clock and ours are apart", "set both by NTP; which is wrong shows a third one"}},
		{"wire", Rule{"ours.revoked", finding.Error, "the authority's record says that the certificate is revoked or on hold, and it is served",
			"replace it, and make the service read it"}},
		{"wire", Rule{"ours.newer", finding.Error, "a newer certificate was issued for this, and the old one is served",
			"make the service read its files; where it did, place the newer one"}},
		{"wire", Rule{"ours.forged", finding.Error, "the certificate bears the name of one of our issuers and is not in the record",
			"treat the issuer's key as stolen until it is known how it was made"}},
		{"wire", Rule{"authority.unreachable", finding.Warning, "the authority was to be asked and could not be", "mend the connection to it; what is told without it stands"}},
	}
}

func revocationRules() []shared {
	return []shared{
		{"wire", Rule{"revocation.none", finding.Warning, "the certificate does not say where its revocation can be looked up",
			"issue it again once the authority has a public URL; until then peers need the CRL by another way"}},
		{"wire", Rule{"revocation.scheme", finding.Warning, "an address for revocation is not plain http", "issue it again with an http address; many peers fetch nothing else"}},
		{"wire", Rule{"revocation.inside", finding.Warning, "an address for revocation is link-local, private or this machine's, and what is looked at is not near it",
			"name by --fetch-private that it may be asked, where the network is yours; and publish it where peers reach it"}},
		{"wire", Rule{"revocation.partial", finding.Warning, "a CRL lists what was revoked for some reasons only", "publish one for all reasons; what is not on this is not therefore good"}},
		{"wire", Rule{"revocation.unreachable", finding.Error, "a CRL or OCSP answer cannot be had where the certificate says",
			"look whether the address is served and reachable from peers"}},
		{"wire", Rule{"revocation.forged", finding.Error, "a CRL or OCSP answer is not one, is not the issuer's, or does not cover the certificate",
			"publish the issuer's own; look for who answers at the address"}},
		{"wire", Rule{"revocation.stale", finding.Error, "a CRL or OCSP answer is past its nextUpdate", "sign a new one; peers that check refuse the path meanwhile"}},
		{"wire", Rule{"revocation.revoked", finding.Error, "the certificate is revoked", "replace it"}},
		{"wire", Rule{"revocation.unknown", finding.Error, "the OCSP responder does not know the certificate",
			"look whether the responder reads the record of the issuer that signed it"}},
		{"wire", Rule{"staple.invalid", finding.Error, "the stapled OCSP answer is stale, of another certificate, or not the issuer's",
			"make the service fetch it anew; peers that look at it break the connection"}},
		{"wire", Rule{"staple.missing", finding.Error, "the certificate demands a stapled OCSP answer and none is sent",
			"turn stapling on in the service, or issue it again without the demand (RFC 7633)"}},
	}
}

func fileRules() []shared {
	return []shared{
		{"file", Rule{"unreadable", finding.Error, "the file cannot be read from here", "look as a user who may read it"}},
		{"file", Rule{"format", finding.Error, "the file holds nothing that can be read as what it should be", "write it anew from its source"}},
		{"file", Rule{"trailing", finding.Error, "something follows what the file is", "write it anew; programs differ in what they make of it"}},
		{"file", Rule{"text", finding.Warning, "text stands outside the PEM blocks", "write it anew without; some consumers stop at it"}},
		{"file", Rule{"mode", finding.Error, "a private key can be read by everybody", "make a new key, since anybody could read this one, and narrow the mode"}},
		{"file", Rule{"readable", finding.Error, "the user of the consumer cannot read the file", "open the component that is named, and nothing more"}},
		{"file", Rule{"label", finding.Error, "the SELinux label is not the recipe's", "set the label"}},
		{"file", Rule{"pair", finding.Error, "the key is not the certificate's", "put the key beside it that the certificate was requested with, or issue a new pair"}},
		{"file", Rule{"keys", finding.Error, "several private keys are in one file", "leave the one that is meant; consumers differ in which they take"}},
		{"file", Rule{"password", finding.Warning, "the file is encrypted, and what is in it was not looked at", "give its password by --password-file"}},
		{"file", Rule{"password.wrong", finding.Error, "the password that was given does not open the file", "find out which password it was written with, or write it anew"}},
		{"file", Rule{"crl.stale", finding.Error, "the CRL is past its nextUpdate", "fetch the newest; libvirtd, OpenSSL and GnuTLS refuse every peer meanwhile"}},
		{"file", Rule{"crl.future", finding.Error, "the CRL is not valid yet", "compare the clocks of this machine and of the issuer"}},
		{"file", Rule{"crl.issuer", finding.Error, "the CRL is not signed by the issuer whose name it bears", "fetch it from the issuer anew"}},
		{"file", Rule{"crl.partial", finding.Warning, "the CRL is a delta or covers only part of what its issuer issued",
			"give consumers the complete one: what is not on this is not therefore good"}},
		{"file", Rule{"csr.refused", finding.Error, "the request would not be accepted", "make it anew: chancery agent csr, or chancery cert issue --key"}},
		{"file", Rule{"limits", finding.Error, "the file has more than the consumer reads of one", "leave only what the consumer needs"}},
	}
}

func hostRules() []shared {
	return []shared{
		{"host", Rule{"state.pending", finding.Warning, "the host has not joined", "join its agent with the token"}},
		{"host", Rule{"state.suspect", finding.Error, "two machines used the host's identity; nothing is issued to it", "find out which one is right, and replace the identity"}},
		{"host", Rule{"state.removed", finding.Error, "the host was removed", "add it again if its machine is to be a host"}},
		{"host", Rule{"silent", finding.Error, "the host's agent has not called for an hour", "look at the agent on the host, and at its way to the authority"}},
		{"host", Rule{"identity.expired", finding.Error, "the host's identity has ended", "join the host again; its agent can no longer call"}},
		{"host", Rule{"identity.ends", finding.Warning, "the host's identity ends within a week", "look at the agent on the host: it renews its identity by itself long before"}},
		{"host", Rule{"placement.failed", finding.Error, "a placement is not as desired", "mend what its message says; the agent tries again by itself"}},
		{"host", Rule{"placement.pending", finding.Warning, "the agent has not reported on a placement", "start the agent, or wait for its next pass"}},
		{"host", Rule{"placement.down", finding.Warning, "a consumer is down", "start the service; the agent does not start what was down"}},
		{"host", Rule{"placement.late", finding.Error, "a placement's certificate is a day past the time of its re-keying", "look at the message of the placement and at the agent's log"}},
		{"host", Rule{"placement.expired", finding.Error, "a placement's certificate has ended", "have it re-keyed now"}},
		{"host", Rule{"port.contradiction", finding.Error, "the port serves another certificate than the agent reported",
			"reload the service on the host; if it serves the old one still, something else than the service that the recipe knows has the port, or the host lies"}},
		{"host", Rule{"port.wrong", finding.Error, "what a placement serves breaks a rule", "look at the port itself for all of it"}},
		{"host", Rule{"port.unreachable", finding.Warning, "a placement's port cannot be looked at from here", "look from a machine that may reach it, or on the host"}},
		{"host", Rule{"local.missing", finding.Error, "a placed file is not there", "have the agent place it again"}},
		{"host", Rule{"local.mode", finding.Error, "a placed file has another mode", "have the agent mend it; look for who changed it"}},
		{"host", Rule{"local.owner", finding.Error, "a placed file has another owner or group", "have the agent mend it; look for who changed it"}},
		{"host", Rule{"local.label", finding.Error, "a placed file has another SELinux label", "have the agent mend it; look for who changed it"}},
		{"host", Rule{"local.pair", finding.Error, "the placed key is not the placed certificate's", "have the agent place both again"}},
		{"host", Rule{"local.readable", finding.Error, "the consumer's user cannot read a placed file", "open the component that is named, and nothing more"}},
		{"host", Rule{"local.drift", finding.Error, "a placed file does not hold what the agent placed", "have the agent place it again; look for who changed it"}},
		{"host", Rule{"local.stale", finding.Error, "the service still serves an older certificate than the file holds", "reload the service"}},
		{"host", Rule{"agent.stopped", finding.Warning, "no agent runs on this host", "start it; without it nothing is renewed"}},
	}
}
