package certtool

import (
	"cmp"
	"crypto/x509"
	"encoding/asn1"
	"slices"
	"strings"

	"chancery/internal/pki/cert"
)

type optionKind int

const (
	single optionKind = iota // one value; the first counts
	multi                    // up to maxValues values
	flag                     // true by presence
	number                   // one value, read as strtol does
)

// maxValues is how many values certtool keeps of an option that may be repeated.
const maxValues = 128

// options are all names of the grammar, in the order in which certtool looks for them.
var options = []struct {
	name string
	kind optionKind
}{
	{"unit", multi}, {"ou", multi}, {"organization", multi}, {"o", multi}, {"dc", multi},
	{"dn", single}, {"cn", single}, {"uid", single}, {"locality", single}, {"state", single}, {"country", single},
	{"pkcs9_email", single}, {"dn_oid", multi},
	{"issuer_unique_id", single}, {"subject_unique_id", single}, {"challenge_password", single}, {"password", single},
	{"pkcs12_key_name", single},
	{"expiration_date", single}, {"activation_date", single}, {"expiration_days", number}, {"serial", single},
	{"crl_revocation_date", single}, {"crl_this_update_date", single}, {"crl_next_update_date", single},
	{"crl_next_update", number}, {"crl_number", single},
	{"policy1", single}, {"policy1_txt", single}, {"policy1_url", single},
	{"policy2", single}, {"policy2_txt", single}, {"policy2_url", single},
	{"policy3", single}, {"policy3_txt", single}, {"policy3_url", single},
	{"policy4", single}, {"policy4_txt", single}, {"policy4_url", single},
	{"policy5", single}, {"policy5_txt", single}, {"policy5_url", single},
	{"policy6", single}, {"policy6_txt", single}, {"policy6_url", single},
	{"policy7", single}, {"policy7_txt", single}, {"policy7_url", single},
	{"policy8", single}, {"policy8_txt", single}, {"policy8_url", single},
	{"inhibit_anypolicy_skip_certs", number},
	{"dns_name", multi}, {"uri", multi}, {"ip_address", multi}, {"email", multi}, {"krb5_principal", multi},
	{"other_name", multi}, {"other_name_octet", multi}, {"other_name_utf8", multi}, {"xmpp_name", multi},
	{"key_purpose_oid", multi},
	{"nc_exclude_ip", multi}, {"nc_exclude_dns", multi}, {"nc_exclude_email", multi},
	{"nc_permit_ip", multi}, {"nc_permit_dns", multi}, {"nc_permit_email", multi},
	{"add_extension", multi}, {"add_critical_extension", multi}, {"crl_dist_points", multi},
	{"path_len", number}, {"proxy_policy_language", single}, {"ocsp_uri", multi}, {"ca_issuers_uri", multi},
	{"ca", flag}, {"honor_crq_extensions", flag}, {"honor_crq_ext", multi},
	{"tls_www_client", flag}, {"tls_www_server", flag}, {"signing_key", flag}, {"encryption_key", flag},
	{"cert_signing_key", flag}, {"crl_signing_key", flag}, {"code_signing_key", flag}, {"ocsp_signing_key", flag},
	{"time_stamping_key", flag}, {"email_protection_key", flag}, {"ipsec_ike_key", flag}, {"data_encipherment", flag},
	{"key_agreement", flag}, {"non_repudiation", flag}, {"tls_feature", multi},
}

// usageOptions are the switches of the key usage, in certtool's order.
var usageOptions = []struct {
	option string
	bit    x509.KeyUsage
}{
	{"signing_key", x509.KeyUsageDigitalSignature}, {"encryption_key", x509.KeyUsageKeyEncipherment},
	{"key_agreement", x509.KeyUsageKeyAgreement}, {"data_encipherment", x509.KeyUsageDataEncipherment},
	{"non_repudiation", x509.KeyUsageContentCommitment}, {"cert_signing_key", x509.KeyUsageCertSign},
	{"crl_signing_key", x509.KeyUsageCRLSign},
}

// purposeOptions are the switches of the extended key usage, in certtool's order.
var purposeOptions = []struct {
	option string
	oid    asn1.ObjectIdentifier
}{
	{"tls_www_client", cert.OIDClientAuth}, {"tls_www_server", cert.OIDServerAuth}, {"ipsec_ike_key", cert.OIDIPsecIKE},
	{"ocsp_signing_key", cert.OIDOCSPSigning}, {"code_signing_key", cert.OIDCodeSigning},
	{"time_stamping_key", cert.OIDTimeStamping}, {"email_protection_key", cert.OIDEmailProtection},
}

// Option is one line of a template that counts.
type Option struct {
	Name, Value  string
	Line, Column int // of the name

	KeyUsage  x509.KeyUsage         // 0: the option is no key usage
	Purpose   asn1.ObjectIdentifier // nil: it is no purpose
	Extension asn1.ObjectIdentifier // nil: it is no extension
}

// Options returns the options of the template in its order, each value of its own.
func (t *Template) Options() []Option {
	var all []Option
	for _, settings := range t.settings {
		for _, e := range settings {
			o := Option{Name: e.name, Value: e.value, Line: e.at.line, Column: e.at.column}
			for _, u := range usageOptions {
				if u.option == e.name {
					o.KeyUsage = u.bit
				}
			}
			for _, u := range purposeOptions {
				if u.option == e.name {
					o.Purpose = u.oid
				}
			}
			id, _ := splitPair(e.value)
			if oid, err := cert.ParseOID(id); err == nil {
				switch e.name {
				case "key_purpose_oid":
					o.Purpose = oid
				case "add_extension", "add_critical_extension":
					o.Extension = oid
				}
			}
			all = append(all, o)
		}
	}
	slices.SortFunc(all, func(a, b Option) int { return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column)) })
	return all
}

func kindOf(name string) (optionKind, bool) {
	for _, o := range options {
		if o.name == name {
			return o.kind, true
		}
	}
	return 0, false
}

// nearest returns the option whose name is most like name, for the refusal; "" if none is near.
func nearest(name string) string {
	name = strings.ToLower(strings.Trim(name, "-_:^"))
	best, distance := "", 1+len(name)/3
	for _, o := range options {
		if d := editDistance(name, o.name); d <= distance && (best == "" || d < distance) {
			best, distance = o.name, d
		}
	}
	return best
}

func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		previous := slices.Clone(row)
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			row[j+1] = min(previous[j]+cost, previous[j+1]+1, row[j]+1)
		}
	}
	return row[len(b)]
}
