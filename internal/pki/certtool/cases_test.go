package certtool

// parityCase is one template that both programs read. The serial number and dates below stand before it, unless it has
// its own. strict is a part of the refusal in the Strict mode, "" where the template passes; refused says that the Compat
// mode and certtool refuse it too.
type parityCase struct {
	template string
	key      string // rsa where empty
	strict   string
	refused  bool
}

const (
	fixedSerial     = "serial = 4711\n"
	fixedActivation = "activation_date = \"2027-02-28 16:24:41 UTC\"\n"
	fixedExpiration = "expiration_date = \"2028-02-28 16:24:41 UTC\"\n"
)

const allSAN = "dns_name = a.example\ndns_name = B.example\nuri = http://u/\nip_address = 10.0.0.1\nip_address = 2001:db8::1\n" +
	"other_name = 1.2.3.4 0500\nother_name_octet = 1.2.3.6 world\nother_name_utf8 = 1.2.3.5 hello\n" +
	"xmpp_name = juliet@im.example.com\nkrb5_principal = user/host@REALM.COM\nemail = x@y.example\n"

const allUsage = "cn = h\nsigning_key\nencryption_key\nkey_agreement\ndata_encipherment\nnon_repudiation\n"

const allPurposes = "cn = h\ntls_www_server\ntls_www_client\ncode_signing_key\nocsp_signing_key\ntime_stamping_key\n" +
	"email_protection_key\nipsec_ike_key\nkey_purpose_oid = 1.2.3.4.5\n"

// parityCases holds one template for each option at least, the quirks of the lexer, and combinations.
var parityCases = []parityCase{
	// The five lines of libvirt's page, with each kind of key.
	{template: "organization = libvirt.org\ncn = host1\ntls_www_server\nencryption_key\nsigning_key\n"},
	{template: "organization = libvirt.org\ncn = host1\ntls_www_server\nencryption_key\nsigning_key\n", key: "ec"},
	{template: "organization = libvirt.org\ncn = host1\ntls_www_server\nencryption_key\nsigning_key\n", key: "ed"},
	{template: "organization = libvirt.org\ncn = host1\ntls_www_client\nencryption_key\nsigning_key\n", key: "p384"},

	// Subject.
	{template: "cn = host1\n"}, {template: "locality = London\n"}, {template: "state = Essex\n"}, {template: "country = GB\n"},
	{template: "uid = jdoe\n"}, {template: "pkcs9_email = a@b.example\n"}, {template: "organization = O1\norganization = O2\n"},
	{template: "o = O1\no = O2\n"}, {template: "unit = U1\nunit = U2\n"}, {template: "ou = U1\nou = U2\n"},
	{template: "dc = example\ndc = com\n"}, {template: "dn = CN=a,O=b,C=GB\n"}, {template: "dn = CN=a,O=b\nunit = c\ncountry = GB\n"},
	{template: "dn = CN=a,O=b\ncn = c\n", strict: "common name already"}, {template: "dn = \"cn=a, OU = x , OU=y,EMAIL=a@b,2.5.4.13=d\"\n"},
	{template: "dn = CN=#0c0161,1.2.3.4=#130155\n"}, {template: "dn = XX=a\n", strict: "XX", refused: true},
	{template: "dn = CN=a+O=b\n", strict: "+", refused: true}, {template: "dn = CN=a,\n"}, {template: "dn = CN=\n", strict: "attribute", refused: true},
	{template: "dn = CN=a b;c<d>\"e\"\n"}, {template: "dn = surName=s,givenName=g,title=t,street=x,serialNumber=5,pseudonym=p,postalCode=1\n"},
	{template: "dn_oid = \"2.5.4.12 Dr\"\ndn_oid = 2.5.4.42 Jo Ann\n"}, {template: "dn_oid = \"2.5.4.12\"\n", strict: "identifier", refused: true},
	{template: "dn_oid = \"1.2.3 x\"\n", strict: "1.2.3", refused: true}, {template: "dn_oid = \"2.5.4.46 q\"\ndn_oid = 1.2.643.100.1 123\n"},
	{template: "pkcs9_email = e@x\ndc = d\nuid = u\ncn = c\nunit = ou\norganization = o\nlocality = l\nstate = st\ncountry = GB\ndn_oid = 2.5.4.12 t\n"},
	{template: "cn = Grüße\nstate = a_b\nunit = a@b\nlocality = it's\norganization = (a)+,-./:=?\n"},
	{template: "cn = \"  a  \"\nunit = \"#x\"\norganization = 'a\"b,c;d<e>f'\n"},
	{template: "organization = a\no = b\n", strict: "beside organization"}, {template: "unit = a\nou = b\n", strict: "beside unit"},

	// Identity.
	{template: "cn = x\nserial = 1\n"}, {template: "cn = x\nserial = 007\n"}, {template: "cn = x\nserial = 9223372036854775806\n"},
	{template: "cn = x\nserial = 128\n"}, {template: "cn = x\nserial = +5\n"}, {template: "cn = x\nserial = 0x07ab\n"},
	{template: "cn = x\nserial = 0x00ff\n"}, {template: "cn = x\nserial = 0x0000ff\n"},
	{template: "cn = x\nserial = 0x0102030405060708090a0b0c0d0e0f1011121314\n"}, {template: "cn = x\nserial = 0x7ab\n", strict: "even", refused: true},
	{template: "cn = x\nserial = 0\n", strict: "decimal", refused: true}, {template: "cn = x\nserial = -1\n", strict: "decimal", refused: true},
	{template: "cn = x\nserial = abc\n", strict: "decimal", refused: true}, {template: "cn = x\nserial = 12abc\n", strict: "decimal", refused: true},
	{template: "cn = x\nserial = 9223372036854775807\n", strict: "decimal", refused: true}, {template: "cn = x\nserial = 0x\n", strict: "even", refused: true},
	{template: "cn = x\nserial = 0x00\n", strict: "1 or more", refused: true}, {template: "cn = x\nserial = 0X01\n", strict: "decimal", refused: true},
	{template: "cn = x\nserial = 0x0102030405060708090a0b0c0d0e0f101112131415\n", strict: "20", refused: true},
	{template: "cn = x\nserial = 0xf102030405060708090a0b0c0d0e0f1011121314\n", strict: "20", refused: true},
	{template: "cn = x\nserial = \" 12\"\n", strict: "decimal"},
	{template: "cn = x\nsubject_unique_id = 001122\n", strict: "4.1.2.8"}, {template: "cn = x\nissuer_unique_id = AAbb\n", strict: "4.1.2.8"},
	{template: "cn = x\nsubject_unique_id = 123\n", strict: "even", refused: true}, {template: "cn = x\nissuer_unique_id = 0x12\n", strict: "even", refused: true},

	// Time.
	{template: "cn = x\nactivation_date = 2027-01-01\nexpiration_date = \"28 Feb 2027 10:00 +0200\"\n"},
	{template: "cn = x\nactivation_date = @1800000000\nexpiration_date = \"2027/12/31 11:59 pm\"\n"},
	{template: "cn = x\nactivation_date = \"2027-01-01 00:00:00.9\"\n"}, {template: "cn = x\nexpiration_date = \"2050-01-01 UTC\"\n"},
	{template: "cn = x\nexpiration_date = \"9999-12-31 23:59:59 UTC\"\n"}, {template: "cn = x\nexpiration_days = -1\n", strict: ""},
	{template: "cn = x\nexpiration_days = 3000000\n"}, {template: "cn = x\nexpiration_date = \"Feb 29 2025\"\n", strict: "does not exist", refused: true},
	{template: "cn = x\nactivation_date = soon\n", strict: "unknown word", refused: true},
	{template: "cn = x\nactivation_date = 2027-01-01\nexpiration_date = 2026-01-01\n", strict: "before it begins"},
	{template: "cn = x\nexpiration_days = 10\nexpiration_date = 2028-01-01\n", strict: "beside expiration_date"},

	// Alternative names.
	{template: "cn = x\n" + allSAN}, {template: "cn = x\ndns_name = bücher.example\n"}, {template: "cn = x\ndns_name = *.example\n"},
	{template: "cn = x\ndns_name = \"a b\"\n", strict: "not a DNS name"},
	{template: "cn = x\nip_address = ::ffff:1.2.3.4\n"}, {template: "cn = x\nip_address = 10.0.0.256\n", strict: "IPv4", refused: true},
	{template: "cn = x\nip_address = fe80::1%eth0\n", strict: "IPv4", refused: true}, {template: "cn = x\nip_address = 010.0.0.1\n", strict: "IPv4", refused: true},
	{template: "cn = x\nip_address = 10.0.0.0/8\n", strict: "IPv4", refused: true}, {template: "cn = x\nip_address = host\n", strict: "IPv4", refused: true},
	{template: "cn = x\nuri = http://bücher/\n", strict: "ASCII", refused: true}, {template: "cn = x\nemail = x@bücher.de\n"},
	{template: "cn = x\nemail = bücher@x.de\n", strict: "ASCII", refused: true}, {template: "cn = x\nemail = no-at\n", strict: "mailbox"},
	{template: "cn = x\nemail = a@b\ntls_www_server\n", strict: "beside tls_www_server"}, {template: "cn = x\nemail = a@b\ntls_www_client\n"},
	{template: "cn = x\nother_name = 1.2.3\n", strict: "identifier", refused: true}, {template: "cn = x\nother_name = 1.2.3 0x0500\n", strict: "hexadecimal", refused: true},
	{template: "cn = x\nother_name = 1.2.3 050\n", strict: "hexadecimal", refused: true}, {template: "cn = x\nother_name = x 0500\n", strict: "identifier", refused: true},
	{template: "cn = x\nother_name = \"1.3.6.1.4.1.311.20.2.3 0c0361406d\"\n"}, {template: "cn = x\nother_name_utf8 = 1.2.3 a b é\nother_name_octet = 1.2.3 é\n"},
	{template: "cn = x\nkrb5_principal = a@b@c\n"},
	{template: "cn = x\nkrb5_principal = a/b/c@R\n"}, {template: "cn = x\nkrb5_principal = @R\n", strict: "empty part"}, {template: "cn = x\nkrb5_principal = a//b@R\n", strict: "empty part"},
	{template: "cn = x\nkrb5_principal = krbtgt/R@R\n"}, {template: "cn = x\nkrb5_principal = krbtgt/a/b@R\nkrb5_principal = krbtgt@R\n"}, {template: "cn = x\nkrb5_principal = a/b@c@R\n"}, {template: "cn = x\nkrb5_principal = user\n", strict: "realm", refused: true},

	// CA.
	{template: "cn = x\nca\n"}, {template: "cn = x\nca\npath_len = 0\n"}, {template: "cn = x\nca\npath_len = 300\n"},
	{template: "cn = x\nca\npath_len = -1\n", strict: "from 0"}, {template: "cn = x\nca\npath_len = abc\n", strict: "decimal number"},
	{template: "cn = x\nca\npath_len = 4294967299\n", strict: "decimal number"}, {template: "cn = x\npath_len = 3\n", strict: "without ca"},
	{template: "cn = x\nca\ncert_signing_key\n"}, {template: "cn = x\nca\ncrl_signing_key\n", key: "ec"},
	{template: "cn = x\ncert_signing_key\n", strict: "without ca"}, {template: "cn = x\ncrl_signing_key\n", strict: "without ca", key: "ec"},
	{template: "cn = x\nca = false\n", strict: "because it is present"}, {template: "cn = x\nca = true\n"}, {template: "cn = x\nca =\n"},
	{template: allUsage + "ca\ncert_signing_key\n", strict: "encryption_key beside ca"}, {template: allUsage + "ca\ntls_www_server\n"},
	{template: allSAN + "cn = x\nca\n"}, {template: allUsage + "ca\ntls_www_server\ncert_signing_key\ncrl_signing_key\n", key: "ec"},

	// Key usage.
	{template: "cn = x\nsigning_key\n"}, {template: "cn = x\nencryption_key\n"}, {template: "cn = x\nkey_agreement\n"},
	{template: "cn = x\ndata_encipherment\n"}, {template: "cn = x\nnon_repudiation\n"}, {template: allUsage}, {template: allUsage, key: "ec"},
	{template: "cn = x\n", key: "ec"}, {template: "cn = x\nencryption_key\n", key: "ec"}, {template: "cn = x\nkey_agreement\n", key: "ed"},
	{template: "cn = x\nipsec_ike_key\n"}, {template: "cn = x\nipsec_ike_key\n", key: "ec"}, {template: "cn = x\nipsec_ike_key\nsigning_key\n", key: "ec"},
	{template: "cn = x\nipsec_ike_key\nencryption_key\n"}, {template: "cn = x\nipsec_ike_key\nca\ncert_signing_key\n", strict: "beside ca"},
	{template: "cn = x\nipsec_ike_key\nca\ntls_www_server\n", key: "ec"},

	// Purposes.
	{template: "cn = x\ntls_www_server\n"}, {template: "cn = x\ntls_www_client\n"}, {template: "cn = x\ncode_signing_key\n"},
	{template: "cn = x\nocsp_signing_key\n"}, {template: "cn = x\ntime_stamping_key\n"}, {template: "cn = x\nemail_protection_key\n"},
	{template: "cn = x\nkey_purpose_oid = 1.2.3\nkey_purpose_oid = 2.5.29.37.0\nkey_purpose_oid = 1.3.6.1.4.1.311.20.2.2\n"}, {template: allPurposes},
	{template: "cn = x\nkey_purpose_oid = any\n", strict: "identifier", refused: true},
	{template: "cn = x\nkey_purpose_oid = 1.3.6.1.5.5.7.3.1\ntls_www_server\n", strict: "already"},

	// Pointers.
	{template: "cn = x\ncrl_dist_points = http://a/\ncrl_dist_points = http://b/\n"}, {template: "cn = x\nocsp_uri = http://a/\nocsp_uri = http://b/\n"},
	{template: "cn = x\nca_issuers_uri = http://c/\nocsp_uri = http://a/\n"}, {template: "cn = x\nca_issuers_uri = http://c/\n"},
	{template: "cn = x\nocsp_uri = http://é/\n", strict: "ASCII", refused: true},

	// Policies.
	{template: "cn = x\npolicy1 = 1.3.6.1.4.1.5484.1.10.99.1.0\npolicy1_txt = A policy\npolicy1_url = http://p/\npolicy2 = 2.5.29.32.0\n"},
	{template: "cn = x\npolicy1 = 1.2.1\npolicy2 = 1.2.2\npolicy3 = 1.2.3\npolicy4 = 1.2.4\npolicy5 = 1.2.5\npolicy6 = 1.2.6\npolicy7 = 1.2.7\npolicy8 = 1.2.8\n"},
	{template: "cn = x\npolicy1 = 1.2.3\npolicy1_txt = Grüße\n"}, {template: "cn = x\npolicy1 = 1.2.3\npolicy1_url = http://p/\n"},
	{template: "cn = x\npolicy1 = 1.2.3\npolicy3 = 1.2.4\n", strict: "without policy2"}, {template: "cn = x\npolicy1_txt = t\n", strict: "without policy1"},
	{template: "cn = x\npolicy1 = x\n", strict: "identifier", refused: true}, {template: "cn = x\npolicy9 = 1.2.3\n", strict: "no option policy9"},
	{template: "cn = x\nca\ninhibit_anypolicy_skip_certs = 0\n"}, {template: "cn = x\ninhibit_anypolicy_skip_certs = 300\n"},
	{template: "cn = x\ninhibit_anypolicy_skip_certs = -1\n", strict: "from 0"}, {template: "cn = x\ninhibit_anypolicy_skip_certs = abc\n", strict: "decimal number"},

	// Name constraints.
	{template: "cn = x\nca\nnc_permit_dns = a.example\nnc_permit_dns = .b\nnc_exclude_dns = c\nnc_permit_ip = 10.0.0.0/8\nnc_exclude_ip = ::/0\nnc_permit_email = a@b\nnc_exclude_email = .x\n"},
	{template: "cn = x\nca\nnc_permit_ip = 10.0.0.1/8\n", strict: "10.0.0.0/8"}, {template: "cn = x\nca\nnc_permit_ip = 10.0.0.1\n", strict: "range", refused: true},
	{template: "cn = x\nca\nnc_exclude_ip = 10.0.0.0/33\n", strict: "range", refused: true}, {template: "cn = x\nca\nnc_permit_ip = fe80::/10\n"},
	{template: "cn = x\nnc_permit_dns = a\n", strict: "without ca"}, {template: "cn = x\nca\nnc_exclude_email = host.example\n"},

	// Extensions.
	{template: "cn = x\nadd_extension = \"1.2.3.4 0x0AAB01ACFE\"\n"}, {template: "cn = x\nadd_extension = 1.2.3.4 octet_string(0x0AAB01ACFE)\n"},
	{template: "cn = x\nadd_critical_extension = \"1.2.3.4 0500\"\n"}, {template: "cn = x\nadd_critical_extension = \"5.6.7.8 0x0AAB01ACFE\"\n", strict: "first arc", refused: true},
	{template: "cn = x\nadd_extension = \"1.2.3\"\n", strict: "identifier", refused: true}, {template: "cn = x\nadd_extension = \"1.2.3 0x050\"\n", strict: "even", refused: true},
	{template: "cn = x\nadd_extension = \"1.2.3 octet_string(0x05\"\n", strict: "parenthesis", refused: true}, {template: "cn = x\nadd_extension = \"1.2.3 octet_string()\"\n"},
	{template: "cn = x\nadd_extension = 1.2.3 0500\nadd_extension = 1.2.3 0501\nadd_critical_extension = 1.2.3 0502\n", strict: "second time"},
	{template: "cn = x\nsigning_key\nadd_extension = 2.5.29.15 03020640\n", strict: "drops"}, {template: "cn = x\nadd_extension = 2.5.29.15 03020640\n"},
	{template: "cn = x\ndns_name = a\nadd_extension = 2.5.29.17 3003820178\n"}, {template: "cn = x\ntls_www_server\nadd_extension = 2.5.29.37 300406022a03\n"},
	{template: "cn = x\nadd_extension = 2.5.29.19 30030101ff\nadd_extension = 2.5.29.54 020105\n", strict: "drops"}, {template: "cn = x\nadd_extension = 2.5.29.54 020105\n"},
	{template: "cn = x\nadd_extension = 2.5.29.35 3016801400112233445566778899aabbccddeeff00112233\n", strict: "computed", refused: true},
	{template: "cn = x\nadd_extension = 2.5.29.14 041400112233445566778899aabbccddeeff00112233\n", strict: "computed", refused: true},
	{template: "cn = x\ndns_name = a\nadd_critical_extension = 2.5.29.17 3003820178\n"},
	{template: "cn = x\ntls_www_server\nadd_critical_extension = 2.5.29.37 300406022a03\n", strict: "not critical"},
	{template: "cn = x\ntls_feature = 5\nadd_extension = 1.3.6.1.5.5.7.1.24 3003020106\n", strict: "drops"}, {template: "cn = x\nadd_extension = 1.3.6.1.5.5.7.48.1.5 0500\n"},
	{template: "cn = x\nadd_extension = 2.5.29.16 3022800f32303237313231303030303030305a810f32303238313231303030303030305a\n"},
	{template: "cn = x\nadd_critical_extension = 1.3.6.1.5.5.7.1.14 300f020102300a06082b06010505071501\n"},
	{template: "cn = x\ntls_feature = 5\n"}, {template: "cn = x\ntls_feature = 5\ntls_feature = 17\ntls_feature = 65535\n"},
	{template: "cn = x\ntls_feature = 65536\n", strict: "65535", refused: true}, {template: "cn = x\ntls_feature = 5x\n", strict: "decimal number"},

	// Options of other commands pass, when they can be read.
	{template: "cn = x\ncrl_number = x\n", strict: "decimal", refused: true}, {template: "cn = x\ncrl_number = 0x0102030405060708090a0b0c0d0e0f10111213141516\n"},
	{template: "cn = x\ncrl_this_update_date = xyz\n"}, {template: "cn = x\ndn_oid = \"2.5.4.12 \"\n", strict: "identifier", refused: true},
	{template: "cn = x\nchallenge_password = p\npassword = q\npkcs12_key_name = k\nproxy_policy_language = 1.3.6.1.5.5.7.21.1\nhonor_crq_extensions\nhonor_crq_ext = 1.2.3\n"},
	{template: "cn = x\ncrl_next_update = 5\ncrl_number = 3\ncrl_this_update_date = 2027-01-01\ncrl_revocation_date = 2027-01-01\n"},
	{template: "cn = x\ncrl_next_update_date = 2027-01-01\n"},

	// The lexer.
	{template: "cn = \"a\\", strict: "backslash", refused: true}, {template: "foo = \xff\nca = \xff\ncn = x\n", strict: "UTF-8"},
	{template: "cn host1\n"}, {template: "cn=host1\n"}, {template: "cn : host1\n"}, {template: "cn\t=\thost1\n"}, {template: "cn: host1\n"}, {template: "cn:= x\n"},
	{template: "cn:: x\nunit = y\n", strict: "no option cn:"}, {template: "cn = \\x\nunit = y\n", strict: "backslash"}, {template: "cn\\\nunit = \\\\y\n", strict: "followed by"}, {template: "cn = = host1\n"}, {template: "cn  host1 = x\n"},
	{template: "cn = \"a b\"\n"}, {template: "cn = 'a b'   \n"}, {template: "cn = 'a b' # c\nunit = x\n"}, {template: "# c\n\n  \t cn = x\n#"}, {template: "cn = x"},
	{template: "cn = host1 # x\n", strict: "comment"}, {template: "cn = host1  \r\nunit = x\n", strict: "CR LF"}, {template: "cn = host1 \nunit = x\n", strict: "ends in a blank"},
	{template: "signing_key\r\nunit=x\n", strict: "CR LF"}, {template: "cn = \"a\"\r\nunit=x\n"}, {template: "cn = #x\n", strict: "comment"}, {template: "cn = a#x\n"},
	{template: "cn = \"a\\\"b\"\n"}, {template: "cn = 'it\\'s'\n"}, {template: "cn = \"a\\\nb\"\nunit = x\n"},
	{template: "cn = \"a\\tb\\\\c\"\nunit = x\n", strict: "backslash"}, {template: "cn = \"a\nb\"\nunit = x\n", strict: "closing"},
	{template: "cn = \"unclosed\nunit = x\n", strict: "closing"}, {template: "cn = 'unclosed", strict: "closing"},
	{template: "cn = a\\b\\\\c\nunit = x\n", strict: "backslash"}, {template: "cn = a\\\nb\nunit = x\n", strict: "backslash"}, {template: "cn = x\nunit = y\\", strict: "backslash"},
	{template: "cn = \"x\" unit = y\n", strict: "closing quote"}, {template: "cn = \"x\";\nunit = y\n", strict: "closing quote"}, {template: "cn\"a\"\nunit = y\n", strict: "followed by"},
	{template: "cn;x\nunit = y\n", strict: "followed by"}, {template: "cn+=x\nunit = y\n", strict: "followed by"}, {template: "cn = a\tb\n", strict: "control"},
	{template: "cn\v=a\nunit = y\n", strict: "control"}, {template: "unit = y\n; c\ncn = x\n", strict: "unexpected character"}, {template: "unit = y\n[s]\ncn = x\n", strict: "unexpected character"},
	{template: "unit = y\n1cn = x\n", strict: "unexpected character"}, {template: "\xef\xbb\xbfcn = x\n", strict: "unexpected character"},
	{template: "foo = x\nunit = y\n", strict: "no option foo"}, {template: "CN = x\nunit = y\n", strict: "write cn"}, {template: "cn:x\nunit = y\n", strict: "write cn = x"},
	{template: "cn-x = a\ncn^x = b\n_cn = c\nunit = y\n", strict: "no option cn-x"}, {template: "Policy1 = 1.2.3\npolicyx = 1\nunit = y\n", strict: "write policy1"},
	{template: "CN = a\ncn = b\nCN = c\nCA\nca\nfoo = x\nca\n", strict: "write cn"}, {template: "policy1 = 1.2.3\npolicy1 = 1.2.4\ncn = x\n", strict: "may stand once"},
	{template: "cn = h1\ncn = h2\nunit = y\nsigning_key\nsigning_key\n", strict: "may stand once"}, {template: "cn\nunit = x\n", strict: "needs a value", refused: true},
	{template: "cn = \"\"\nunit = x\n", strict: "needs a value", refused: true}, {template: "unit =\ncn = x\n", strict: "needs a value", refused: true},
	{template: "cn = x\nunit = \xff\n", strict: "UTF-8", refused: true}, {template: "cn = x\nunti = y\n", strict: "did you mean unit"},
}

// ourRefusals are templates that certtool takes and we refuse in both modes; see the package's divergences.
var ourRefusals = map[string]string{
	"country = ü\n":                                 "PrintableString",
	"dc = ü\n":                                      "IA5String",
	"pkcs9_email = ü@x\n":                           "IA5String",
	"cn = x\nserial = 0xff\n":                       "negative",
	"cn = x\nserial = 0x8000\n":                     "negative",
	"cn = x\nadd_extension = 1.2.3 0x\n":            "no octets",
	"cn = x\nadd_extension = 1.02.3 0500\n":         "arc",
	"cn = x\nadd_extension = \"1 0500\"\n":          "identifier",
	"cn = x\nkey_purpose_oid = \"\"\n":              "",
	"cn = x\nother_name = 1.2.3 ff\n":               "DER",
	"cn = x\ndns_name =\n":                          "",
	"cn = x\nxmpp_name = bücher@x\n":                "Punycode",
	"cn = x\ncrl_dist_points = http://é/\n":         "ASCII",
	"cn = x\npolicy1 = 1.2.3\npolicy1_txt = \"\"\n": "",
	"cn = x\npolicy1 =\n":                           "",
	"cn = x\nactivation_date = 1940-01-01\n":        "1950",
	"cn = x\nexpiration_date = 10000-01-01\n":       "9999",
	"cn = x\nexpiration_date = 2027\n":              "bare number",
	"cn = x\nexpiration_date = \"10:00 EST\"\n":     "EST",
	"cn = x\nexpiration_date = \"\"\n":              "",
	"cn = x\npolicy1 = 1.2.3\npolicy1_url = é\n":    "ASCII",
}
