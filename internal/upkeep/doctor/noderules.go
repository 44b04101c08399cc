package doctor

import (
	"chancery/internal/upkeep/examine"
	"chancery/internal/upkeep/finding"
)

// NodeRules lists the rules of Node.Look, by ID. Where one is broken more or less, its level is the worst; each is an error as well where
// what it is about cannot be looked at.
func NodeRules() []examine.Rule {
	return []examine.Rule{
		{ID: "backup.drill", Level: finding.Error, About: "the newest drill of a backup failed, or (a warning) none was made as often as backup.drill wants",
			Do: "mend what the drill names, and make one: chancery backup drill, on a node's machine"},
		{ID: "clock", Level: finding.Error, About: "the clock has gone back since the store was last written, or is not the database's",
			Do: "set it by NTP"},
		{ID: "clones", Level: finding.Error, About: "another node cannot sign, as it said last: a key or a token does not open, or an issuer's key is not its certificate's; " +
			"or (a warning) it is not ready, or not as the others", Do: "look at that node: chancery clone status NODE, and chancery doctor there"},
		{ID: "clones.gone", Level: finding.Warning, About: "a node is removed, and may write or be let in still",
			Do: "remove it again (chancery clone remove NODE), and do what the finding says"},
		{ID: "crl.signer", Level: finding.Warning, About: "no node signs CRLs, while the lists that there are are good yet",
			Do: "start a node that runs ca; where the work is pinned to one that is dead, chancery clone demote NODE"},
		{ID: "database", Level: finding.Error, About: "the database does not keep what durability promises, or cannot be asked", Do: "look at it with chancery doctor database"},
		{ID: "database.read", Level: finding.Error, About: "the node's own standby is not read, and the message says why",
			Do: "mend the standby, or name another in database_read"},
		{ID: "files", Level: finding.Error, About: "a file of the data directory that holds a secret can be reached by others than its owner", Do: "take their rights away: chmod go="},
		{ID: "files.login", Level: finding.Error, About: "the certificate of the node's login at the database has ended, or (a warning) should have been renewed",
			Do: "read the node's log for why; once it has ended, chancery rescue expired on this machine"},
		{ID: "hosts", Level: finding.Warning, About: "hosts are suspect, placements failed, or agents are silent", Do: "look at them: chancery host list"},
		{ID: "issuer", Level: finding.Error, About: "an issuer has expired, or (a warning) ends within 180 days or waits for its certificate",
			Do: "renew it (chancery issuer renew), or make a successor: chancery rollout start rotate-issuer, or rotate-root"},
		{ID: "issuer.crl", Level: finding.Error, About: "an issuer has no CRL or one past its nextUpdate, or (a warning) its next is overdue, or it grows so long that revocations show in it late",
			Do: "have one signed: chancery crl issue"},
		{ID: "issuers", Level: finding.Error, About: "there is no issuer, or the issuers cannot be read", Do: "read the message; chancery verify looks at the store"},
		{ID: "issuers.keys", Level: finding.Error, About: "an issuer's key on this node is not the one of its certificate, or is not in the store",
			Do: "bring the right key back from a backup, or make a successor: chancery rollout start rotate-issuer"},
		{ID: "issuers.renewed", Level: finding.Warning, About: "placements present a certificate that an issuer had before it was renewed",
			Do: "have them renewed where that certificate ends soon or is revoked"},
		{ID: "issuers.twins", Level: finding.Error, About: "two issuers share a key that is compromised, while one issues still; or (a warning) they are taken for each other",
			Do: "read the message; retire the one that is not to issue"},
		{ID: "keys.tokens", Level: finding.Error, About: "a key in a PKCS #11 token cannot be used here, or (a warning) the token would give it out",
			Do: "see to the token and to its PIN's file"},
		{ID: "keys.wraps", Level: finding.Error, About: "a sealed key can be opened by others than the rule says, or not by those",
			Do: "restore from a backup with the recovery key, or re-key the issuer"},
		{ID: "offline", Level: finding.Warning, About: "an offline key, or what opens it, is still on this machine", Do: "move it to two places that are safe and apart, and delete it here"},
		{ID: "rollouts", Level: finding.Warning, About: "a rollout waits for somebody", Do: "chancery rollout status names who holds it; mend them, or leave them out"},
		{ID: "trust", Level: finding.Warning, About: "something that pools trust ends within 30 days, or its CRL does", Do: "put its successor into the trust, and rotate away what is below it"},
	}
}
