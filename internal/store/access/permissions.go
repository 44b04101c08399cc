package access

import "slices"

// Action is something that a caller may or may not do.
type Action string

// The actions.
const (
	ReadStatus        Action = "status.read"
	ReadCertificates  Action = "certificate.read"
	IssueCertificate  Action = "certificate.issue"
	RevokeCertificate Action = "certificate.revoke"
	ProveRevocation   Action = "certificate.prove"
	SubmitRequest     Action = "request.submit"
	ReadRequests      Action = "request.read"
	DecideRequest     Action = "request.decide"
	ReadIssuers       Action = "issuer.read"
	ManageIssuers     Action = "issuer.manage"
	IssueCRL          Action = "crl.issue"
	ReadProfiles      Action = "profile.read"
	ManageProfiles    Action = "profile.manage"
	ReadPools         Action = "pool.read"
	ManagePools       Action = "pool.manage"
	ManageHosts       Action = "host.manage"
	ReadHosts         Action = "host.read"
	ActAsHost         Action = "host.act"
	ReadAudit         Action = "audit.read"
	SignCheckpoint    Action = "audit.checkpoint"
	ReadSettings      Action = "settings.read"
	ChangeSettings    Action = "settings.change"
	ReadPrincipals    Action = "principal.read"
	ManagePrincipals  Action = "principal.manage"
	ManageOwnTokens   Action = "token.manage-own"
	CheckStore        Action = "store.check"
	TakeBackup        Action = "backup.take"
	ManageNodes       Action = "node.manage"
)

// Permission is one line of the table: who may do what.
type Permission struct {
	Action Action `json:"action"`
	Roles  []Role `json:"roles"`
	What   string `json:"what"`
}

// Permissions returns the table that decides. A role that stands here may do the thing at all; how far (a host's own names,
// a profile's names, one's own request) is the service's decision.
func Permissions() []Permission {
	everyone := []Role{Admin, Officer, Operator, Auditor, Host}
	staff := []Role{Admin, Officer, Operator, Auditor}
	return []Permission{
		{ReadStatus, staff, "see the state of the authority"},
		{ReadCertificates, everyone, "search and read certificates; a host its own"},
		{IssueCertificate, []Role{Admin, Officer, Operator, Host}, "get certificates at once, as the profile allows; renew and re-key"},
		{RevokeCertificate, []Role{Admin, Officer, Host}, "revoke, hold and release; a host revokes its own"},
		{ProveRevocation, []Role{Admin, Officer}, "have hosts try a revoked certificate upon their own consumers"},
		{SubmitRequest, []Role{Admin, Officer, Operator, Host}, "ask for a certificate that an officer decides on"},
		{ReadRequests, everyone, "list and read requests; a host its own"},
		{DecideRequest, []Role{Admin, Officer}, "assign, approve and reject requests"},
		{ReadIssuers, everyone, "list and read issuers"},
		{ManageIssuers, []Role{Admin}, "make, import and retire issuers"},
		{IssueCRL, []Role{Admin, Officer}, "have a CRL signed now"},
		{ReadProfiles, everyone, "list and read profiles"},
		{ManageProfiles, []Role{Admin}, "save and retire profiles"},
		{ReadPools, everyone, "list and read pools"},
		{ManagePools, []Role{Admin}, "add and change pools"},
		{ManageHosts, []Role{Admin, Operator}, "add, change and remove hosts and what they hold"},
		{ReadHosts, staff, "list hosts, what each shall hold and what was seen there"},
		{ActAsHost, []Role{Host}, "fetch what one shall hold, report what one holds, renew one's identity as an agent"},
		{ReadAudit, []Role{Admin, Auditor}, "search and export the audit record, fetch checkpoints"},
		{SignCheckpoint, []Role{Admin, Auditor}, "have a checkpoint of the audit record signed now"},
		{ReadSettings, staff, "read the settings"},
		{ChangeSettings, []Role{Admin}, "change the settings"},
		{ReadPrincipals, []Role{Admin, Auditor}, "list principals and the tokens and certificates that they have"},
		{ManagePrincipals, []Role{Admin}, "add, change, disable and delete principals, and their tokens"},
		{ManageOwnTokens, staff, "list, make and delete one's own tokens"},
		{CheckStore, []Role{Admin, Auditor}, "run the checks of doctor and verify"},
		{TakeBackup, []Role{Admin}, "take a backup"},
		{ManageNodes, []Role{Admin}, "invite, approve and remove nodes, and replace the recovery key"},
	}
}

// table is Permissions as a map; it is made once and not changed.
var table = func() map[Action][]Role {
	m := map[Action][]Role{}
	for _, p := range Permissions() {
		m[p.Action] = slices.Clone(p.Roles)
	}
	return m
}()

// rolesFor returns nobody for an action that is not in the table.
func rolesFor(a Action) []Role { return table[a] }
