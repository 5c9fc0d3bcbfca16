package domain

import (
	"flag"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var update = flag.Bool("update", false, "write golden files that are missing; those that exist are history and stay")

// goldenEvents has one of each event, every field of it set.
var goldenEvents = []Event{
	AccountCreated{Origin: OriginRegistered, Status: StatusPending, IdentityID: "0190a1b2-0000-7000-8000-00000000000a", Provider: "self",
		ProviderUserID: "ada-1", Profile: fullProfile, CustomFields: map[string]jsontext.Value{"employee_id": value(`"12345"`)},
		Registration:      Situation{"web", "phone", "London"},
		Groups:            []GroupJoined{{GroupID: "CIDAAS_USERS", GroupType: "SYSTEM", Path: "/CIDAAS_USERS", Roles: []string{"USER"}}},
		ClearCustomFields: map[string]jsontext.Value{"login": value(`"Ada"`)}, FieldClaims: map[string]Kind{"login": KindUsername}},
	IdentityLinked{"0190a1b2-0000-7000-8000-00000000000b", "google", "1095", fullProfile},
	IdentityUnlinked{"0190a1b2-0000-7000-8000-00000000000b", "google"},
	ProfileUpdated{"0190a1b2-0000-7000-8000-00000000000a", []string{"family_name"}, value(`{"family_name":"King"}`)},
	StatusChanged{StatusPending, StatusDeclined, "chargeback"},
	CustomFieldsUpdated{Fields: []string{"employee_id", "tier"},
		Values: map[string]jsontext.Value{"employee_id": value("null")}, ClearValues: map[string]jsontext.Value{"tier": value(`"gold"`)},
		FieldClaims: map[string]Kind{"tier": "customFields.tier"}},
	AccountMerged{From: "0190a1b2-0000-7000-8000-000000000002", Via: "0190a1b2-0000-7000-8000-000000000003", Status: StatusVerified,
		CreatedTime: goldenMeta.EffectiveTime, IdentityIDs: []string{fullIdentity.IdentityID}, Identities: []Identity{fullIdentity},
		CustomFields: map[string]jsontext.Value{"tier": value(`"silver"`)}, Filled: []string{"employee_id"}, Conflicts: []string{"tier"},
		Groups:      []Membership{{GroupID: "BERLIN", GroupType: "OFFICE", Path: "/EUROPE/BERLIN", Roles: []string{"USER"}, JoinedTime: goldenMeta.EffectiveTime}},
		Consents:    []ConsentDecision{{ConsentID: "newsletter", Version: 2, Status: ConsentAccepted, Time: goldenMeta.EffectiveTime, Channel: "web"}},
		FieldClaims: map[string]Kind{"tier": "customFields.tier"}},
	AccountCombined{"0190a1b2-0000-7000-8000-000000000001", StatusPending},
	AccountSeparated{From: "0190a1b2-0000-7000-8000-000000000002", IdentityIDs: []string{fullIdentity.IdentityID}, Unset: []string{"employee_id"}},
	AccountRestored{"0190a1b2-0000-7000-8000-000000000001", StatusPending, []string{fullIdentity.IdentityID}, []Identity{fullIdentity}},
	IdentitiesReturned{"0190a1b2-0000-7000-8000-000000000003", []string{fullIdentity.IdentityID}, []Identity{fullIdentity}},
	SchedulePlanned{ScheduleID: "0190a1b2-0000-7000-8000-00000000000c", Kind: ScheduleReminder, DueTime: goldenTime, TargetStatus: StatusDeclined,
		ReminderNo: 1, PeriodSeconds: 86400, Origin: ScheduleAuto, SetupID: "first-reminder"},
	SchedulePostponed{ScheduleID: "0190a1b2-0000-7000-8000-00000000000c", From: goldenTime, DueTime: goldenTime.Add(time.Hour)},
	ScheduleCancelled{ScheduleID: "0190a1b2-0000-7000-8000-00000000000c", Reason: "verified"},
	ScheduleExecuted{ScheduleID: "0190a1b2-0000-7000-8000-00000000000c", Kind: ScheduleReminder, State: ScheduleDone, Reason: "unchanged",
		DueTime: goldenTime, Late: true, ReminderNo: 1, NextDueTime: goldenTime.Add(24 * time.Hour)},
	DeletionScheduled{ScheduleID: "0190a1b2-0000-7000-8000-00000000000c", From: StatusVerified, DueTime: goldenTime},
	DeletionCancelled{To: StatusVerified, Reason: "changed her mind"},
	ConsentDecided{"newsletter", 2, ConsentAccepted, time.Date(2026, 11, 20, 8, 0, 0, 0, time.UTC), "web", "shop", value(`{"form":"f1"}`)},
	AccountErased{"00ff"},
	GroupJoined{GroupID: "BERLIN", GroupType: "OFFICE", Path: "/EUROPE/BERLIN", Roles: []string{"ADMIN", "USER"}},
	GroupRolesChanged{GroupID: "BERLIN", GroupType: "OFFICE", Path: "/EUROPE/BERLIN", Roles: []string{"USER"}},
	GroupLeft{GroupID: "BERLIN"},
	LoginRecorded{IdentityID: "0190a1b2-0000-7000-8000-00000000000a", Provider: "self", Method: "password", Situation: Situation{"web", "phone", "London"}},
	LoginFailed{IdentityID: "0190a1b2-0000-7000-8000-00000000000a", Provider: "self", Method: "password", Reason: LoginDeclined, Situation: Situation{"web", "phone", "London"}},
	UnknownLogin{Provider: "self", Method: "password"},
	GroupTypeSet{GroupType: "OFFICE", RoleMode: ModeAllowedRoles, AllowedRoles: []string{"ADMIN", "USER"}, Created: true, Fields: []string{"roleMode", "allowedRoles"}},
	GroupTypeDeleted{GroupType: "OFFICE"},
	GroupSet{GroupID: "BERLIN", GroupName: "Berlin", GroupType: "OFFICE", ParentID: "EUROPE", Description: "Next to the station.",
		CustomFields: map[string]jsontext.Value{"floor": value("3")}, Created: true,
		Fields: []string{"groupName", "groupType", "parentId", "description", "customFields"}},
	GroupDeleted{GroupID: "BERLIN"},
	ErasureCompleted{KeyID: "00ff"},
	ScheduleSetupSet{SetupID: "first-reminder", Kind: ScheduleReminder, OffsetSeconds: 86400, ReminderNo: 1, TargetStatus: StatusDeclined,
		PeriodSeconds: 86400, Created: true, Fields: []string{"kind", "offsetSeconds"}},
	ScheduleSetupDeleted{SetupID: "first-reminder"},
	RoleSet{"AUDITOR", "Auditor", "Reads everything.", true, []string{"name", "description"}},
	RoleDeleted{"AUDITOR"},
	FieldSet{fullField, true, []string{"dataType", "required"}},
	FieldDeleted{"tier"},
	ConsentDefinitionSet{"newsletter", "Newsletter", "To tell you what is new.", "consent", []ConsentVersion{{1, map[string]string{"en": "Yes, please."},
		"https://example.com/newsletter", time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC)}}, true, []string{"name", "versions"}},
	ConsentDefinitionDeleted{"newsletter"},
	WebhookCreated{"https://crm.example/hook", []string{"USER_*"}, FormatStandard, PayloadFull, 17, fullOptions,
		[]WebhookKey{{KeyID: "0190a1b2-0000-7000-8000-00000000000e", Type: KeyEd25519}}},
	WebhookUpdated{WebhookSettings{"https://crm.example/hook", []string{"USER_*"}, FormatStandard, PayloadFull, fullOptions}, []string{"events"}},
	WebhookKeyRotated{WebhookKey{KeyID: "0190a1b2-0000-7000-8000-00000000000f", Type: KeyHMAC}, []string{"first"}, goldenTime},
	WebhookStateChanged{WebhookEnabled, WebhookDisabled, "gone"},
	WebhookDeleted{},
	APIKeyCreated{"0190a1b2-0000-7000-8000-000000000012", APIKeySettings{"CRM import", []string{"accounts:read", "accounts:write"}, goldenTime}},
	APIKeyUpdated{"0190a1b2-0000-7000-8000-000000000012", APIKeySettings{"CRM import", []string{"accounts:read"}, goldenTime}, []string{"scopes"}},
	APIKeyRevoked{"0190a1b2-0000-7000-8000-000000000012"},
	CommandRemembered{Stream: "account-0190a1b2-0000-7000-8000-000000000003", Revision: 4, Unchanged: true, KeyID: []byte{0, 255}, Request: []byte("sealed")},
	WebhookVerified{120},
	WebhookDeliveryFailing{goldenTime, "timeout"},
	WebhookDeliveryRecovered{goldenTime},
	WebhookDeliveryExhausted{"0190a1b2-0000-7000-8000-000000000012", "USER_UPDATED", "0190a1b2-0000-7000-8000-000000000001", 4, 17, "status"},
}

// otherwise are events that go by another public name than the golden one of
// their type.
var otherwise = []Event{
	RoleSet{Role: "AUDITOR", Fields: []string{"name"}},
	GroupTypeSet{GroupType: "OFFICE", Fields: []string{"roleMode"}},
	GroupSet{GroupID: "BERLIN", Fields: []string{"parentId"}},
	ScheduleSetupSet{SetupID: "first-reminder", Fields: []string{"offsetSeconds"}},
	FieldSet{Fields: []string{"labels"}},
	ConsentDefinitionSet{Fields: []string{"name"}}, ConsentDecided{Status: ConsentDeclined}, ConsentDecided{Status: ConsentRevoked},
}

var fullOptions = WebhookOptions{Description: "Sales", HubSignature: true,
	Preset: "crm", Mapping: WebhookMapping{"customer_id": "sub"}, BatchSize: 10, BatchBytes: 1 << 20,
	Auth:              WebhookAuth{Type: AuthAPIKey, In: "header", Name: "X-API-Key", SecretID: "0190a1b2-0000-7000-8000-000000000010"},
	ClientCertificate: WebhookCertificate{Certificate: "-----BEGIN CERTIFICATE-----", SecretID: "0190a1b2-0000-7000-8000-000000000011"},
	Headers:           map[string]string{"X-Tenant": "7"}, RateLimit: 2.5, Burst: 5, MaxInFlight: 8, Order: OrderStrict,
	DeadLetter: DeadLetterBlock, Verification: VerifyOptions}

var fullField = FieldDefinition{
	FieldKey: "tier", DataType: TypeSelect, Required: true, ReadOnly: true, Internal: true, Unique: true, Searchable: true, Personal: true,
	Min: new(1.0), Max: new(2.0), MinLength: 3, MaxLength: 4, Regex: "[a-z]+", Options: []string{"gold", "silver"},
	Labels: map[string]string{"de": "Stufe", "en": "Tier"}, LinkedConsent: "newsletter",
}

// untold are events that nobody outside is told.
var untold = []string{"account.identities-returned.v1", "login.unknown.v1", "command.remembered.v1", TypeOf(ErasureCompleted{})}

var goldenTime = time.Date(2026, 12, 24, 18, 0, 0, 0, time.UTC)

var fullProfile = Profile{
	GivenName: "Ada", FamilyName: "King", MiddleName: "Augusta", Nickname: "Countess",
	Email: "ada@example.com", EmailVerified: true, MobileNumber: "+4915112345678", MobileNumberVerified: true, Username: "ada",
	Locale: "en-GB", Zoneinfo: "Europe/London", Birthdate: "1815-12-10", Gender: "female",
	Picture: "https://example.com/ada.png", Website: "https://example.com/ada",
	Address: &Address{"12 St James's Square", "12 St James's Square", "London", "Greater London", "SW1Y 4JH", "GB"},
}

var fullIdentity = Identity{
	IdentityID: "0190a1b2-0000-7000-8000-00000000000c", Provider: "self", ProviderUserID: "ada-2", Profile: fullProfile,
	From: "0190a1b2-0000-7000-8000-000000000003", Secondary: true,
	CreatedTime: time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC), UpdatedTime: time.Date(2026, 11, 22, 12, 0, 1, 0, time.UTC),
}

var goldenMeta = Metadata{
	Actor: Actor{"api-key", "k1", "crm"}, CommandID: "c1", CorrelationID: "r1", CausationID: "e1",
	EffectiveTime: time.Date(2026, 11, 22, 12, 0, 0, 123456000, time.UTC), ReasonCode: "support", requestHash: "digest",
}

type golden struct {
	Type     string         `json:"type"`
	Clear    jsontext.Value `json:"clear"`
	Personal jsontext.Value `json:"personal"`
}

// TestGoldenEvents holds that every version of every event ever written can
// still be read, and that today's are written as they always were.
func TestGoldenEvents(t *testing.T) {
	dir := filepath.Join("..", "testdata", "events")
	for _, e := range goldenEvents {
		clear, err := encodeClear(e, goldenMeta)
		if err != nil {
			t.Fatal(err)
		}
		personal, err := encodePersonal(e, goldenMeta)
		if err != nil {
			t.Fatal(err)
		}
		data, err := json.Marshal(golden{e.eventType(), clear, personal}, jsontext.WithIndent("  "))
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, e.eventType()+".json")
		want, err := os.ReadFile(file)
		if os.IsNotExist(err) && *update {
			if err := os.WriteFile(file, append(data, '\n'), 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), string(data)+"\n"); diff != "" {
			t.Errorf("%s is not written as it was (-was +is):\n%s", e.eventType(), diff)
		}
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil {
		t.Fatal(err)
	}
	read := map[string]bool{}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var g golden
		if err := json.Unmarshal(data, &g); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		e, m, err := DecodeEvent(g.Type, g.Clear, g.Personal)
		if err != nil {
			t.Errorf("%s: %v", file, err)
			continue
		}
		if m != goldenMeta {
			t.Errorf("%s: metadata %+v, want %+v", file, m, goldenMeta)
		}
		// A field added later is missing in the older shapes, <type>.<n>.json.
		if v := reflect.ValueOf(e); filepath.Base(file) == e.eventType()+".json" {
			for i := range v.NumField() {
				if v.Field(i).IsZero() {
					t.Errorf("%s does not show the field %s", file, v.Type().Field(i).Name)
				}
			}
		}
		if _, _, err := DecodeEvent(g.Type, g.Clear, nil); err != nil {
			t.Errorf("%s, erased: %v", file, err)
		}
		read[g.Type] = true
	}
	for _, name := range slices.Sorted(maps.Keys(decoders)) {
		if !read[name] {
			t.Errorf("%s has no golden file", name)
		}
	}
}

// TestClassified holds that every field of every event is tagged clear or
// personal, and that nothing that is somebody's is clear.
func TestClassified(t *testing.T) {
	clear := []string{
		"AccountCreated.Origin", "AccountCreated.Status", "AccountCreated.IdentityID", "AccountCreated.Provider", "AccountCreated.Groups",
		"IdentityLinked.IdentityID", "IdentityLinked.Provider", "IdentityUnlinked.IdentityID", "IdentityUnlinked.Provider",
		"ProfileUpdated.IdentityID", "ProfileUpdated.Fields", "StatusChanged.From", "StatusChanged.To", "CustomFieldsUpdated.Fields",
		"AccountMerged.From", "AccountMerged.Via", "AccountMerged.Status", "AccountMerged.CreatedTime", "AccountMerged.IdentityIDs",
		"AccountMerged.Filled", "AccountMerged.Conflicts", "AccountMerged.Groups", "AccountMerged.FieldClaims", "AccountCombined.Into", "AccountCombined.From",
		"AccountSeparated.From", "AccountSeparated.IdentityIDs", "AccountSeparated.Unset",
		"AccountRestored.Survivor", "AccountRestored.To", "AccountRestored.IdentityIDs",
		"IdentitiesReturned.From", "IdentitiesReturned.IdentityIDs",
		"AccountCreated.ClearCustomFields", "AccountCreated.FieldClaims", "CustomFieldsUpdated.ClearValues", "CustomFieldsUpdated.FieldClaims",
		"ConsentDecided.ConsentID", "ConsentDecided.Version", "ConsentDecided.Status", "ConsentDecided.Time",
		"AccountErased.KeyID",
		"APIKeyCreated.KeyID", "APIKeyCreated.Settings", "APIKeyUpdated.KeyID", "APIKeyUpdated.Settings", "APIKeyUpdated.Fields", "APIKeyRevoked.KeyID",
		"CommandRemembered.Stream", "CommandRemembered.Revision", "CommandRemembered.Unchanged", "CommandRemembered.KeyID", "CommandRemembered.Request",
		"GroupJoined.GroupID", "GroupJoined.GroupType", "GroupJoined.Path", "GroupJoined.Roles", "GroupLeft.GroupID",
		"GroupRolesChanged.GroupID", "GroupRolesChanged.GroupType", "GroupRolesChanged.Path", "GroupRolesChanged.Roles",
		"LoginRecorded.IdentityID", "LoginRecorded.Provider", "LoginRecorded.Method", "UnknownLogin.Provider", "UnknownLogin.Method",
		"LoginFailed.IdentityID", "LoginFailed.Provider", "LoginFailed.Method", "LoginFailed.Reason",
		"GroupTypeSet.GroupType", "GroupTypeSet.RoleMode", "GroupTypeSet.AllowedRoles", "GroupTypeSet.Created", "GroupTypeSet.Fields",
		"GroupTypeDeleted.GroupType", "GroupDeleted.GroupID", "GroupSet.GroupID", "GroupSet.GroupName", "GroupSet.GroupType",
		"GroupSet.ParentID", "GroupSet.Description", "GroupSet.CustomFields", "GroupSet.Created", "GroupSet.Fields",
		"SchedulePlanned.ScheduleID", "SchedulePlanned.Kind", "SchedulePlanned.DueTime", "SchedulePlanned.TargetStatus",
		"SchedulePlanned.ReminderNo", "SchedulePlanned.PeriodSeconds", "SchedulePlanned.Origin", "SchedulePlanned.SetupID",
		"SchedulePostponed.ScheduleID", "SchedulePostponed.From", "SchedulePostponed.DueTime",
		"ScheduleCancelled.ScheduleID", "ScheduleCancelled.Reason",
		"ScheduleExecuted.ScheduleID", "ScheduleExecuted.Kind", "ScheduleExecuted.State", "ScheduleExecuted.Reason", "ScheduleExecuted.DueTime",
		"ScheduleExecuted.Late", "ScheduleExecuted.ReminderNo", "ScheduleExecuted.NextDueTime",
		"DeletionScheduled.ScheduleID", "DeletionScheduled.From", "DeletionScheduled.DueTime", "DeletionCancelled.To",
		"ErasureCompleted.KeyID",
		"ScheduleSetupSet.SetupID", "ScheduleSetupSet.Kind", "ScheduleSetupSet.OffsetSeconds", "ScheduleSetupSet.ReminderNo",
		"ScheduleSetupSet.TargetStatus", "ScheduleSetupSet.PeriodSeconds", "ScheduleSetupSet.Created", "ScheduleSetupSet.Fields",
		"ScheduleSetupDeleted.SetupID",
		"FieldSet.Field", "FieldSet.Created", "FieldSet.Fields", "FieldDeleted.FieldKey",
		"ConsentDefinitionSet.ConsentID", "ConsentDefinitionSet.Name", "ConsentDefinitionSet.Purpose", "ConsentDefinitionSet.LegalBasis",
		"ConsentDefinitionSet.Published", "ConsentDefinitionSet.Created", "ConsentDefinitionSet.Fields", "ConsentDefinitionDeleted.ConsentID",
		"RoleSet.Role", "RoleSet.Name", "RoleSet.Description", "RoleSet.Created", "RoleSet.Fields", "RoleDeleted.Role",
		"WebhookCreated.URL", "WebhookCreated.Events", "WebhookCreated.Format", "WebhookCreated.Payload", "WebhookCreated.After",
		"WebhookCreated.Options", "WebhookCreated.Keys", "WebhookUpdated.Settings", "WebhookUpdated.Fields",
		"WebhookKeyRotated.Key", "WebhookKeyRotated.Replaces", "WebhookKeyRotated.NotAfter",
		"WebhookStateChanged.From", "WebhookStateChanged.To", "WebhookStateChanged.Reason", "WebhookVerified.AllowedRate",
		"WebhookDeliveryFailing.Since", "WebhookDeliveryFailing.Reason", "WebhookDeliveryRecovered.Since",
		"WebhookDeliveryExhausted.EventID", "WebhookDeliveryExhausted.EventType", "WebhookDeliveryExhausted.Sub",
		"WebhookDeliveryExhausted.Sequence", "WebhookDeliveryExhausted.Position", "WebhookDeliveryExhausted.Reason",
	}
	seen := map[string]bool{}
	for _, e := range goldenEvents {
		seen[e.eventType()] = true
		typ := reflect.TypeOf(e)
		for i := range typ.NumField() {
			name := typ.Name() + "." + typ.Field(i).Name
			switch part(typ.Field(i).Tag.Get("pii")) {
			case clearPart:
				if !slices.Contains(clear, name) {
					t.Errorf("%s is clear, so it can never be erased: if it is nobody's, list it here", name)
				}
			case personalPart:
				if !strings.HasPrefix(e.eventType(), "account.") {
					t.Errorf("%s is personal, but not an account's: there is no key to seal it with", name)
				}
			default:
				t.Errorf("%s is neither clear nor personal", name)
			}
		}
	}
	for name := range decoders {
		if !seen[name] {
			t.Errorf("%s is not among the golden events", name)
		}
	}
}

func TestUnknownEvent(t *testing.T) {
	if e, _, err := DecodeEvent("account.teleported.v1", value("{}"), nil); err == nil {
		t.Errorf("DecodeEvent of an unknown type = %v, want an error", e)
	}
}

// TestCatalogue holds the catalogue against what Public makes of every event:
// each name can occur, and nothing else occurs, with other data or of another
// event than it says.
func TestCatalogue(t *testing.T) {
	causes := map[string][]string{}
	for _, x := range everyEntry() {
		public, err := Public(x)
		if err != nil || (len(public) == 0) != slices.Contains(untold, x.Type) {
			t.Errorf("Public(%s) = %v, %v; want events", x.Type, public, err)
		}
		again, _ := Public(x)
		if diff := cmp.Diff(public, again); diff != "" {
			t.Errorf("Public(%s) differs the second time:\n%s", x.Type, diff)
		}
		ids := map[string]bool{}
		for _, p := range public {
			if ids[p.ID] {
				t.Errorf("Public(%s) uses the id %s twice", x.Type, p.ID)
			}
			ids[p.ID] = true
			if !Selectable(p.Type) {
				t.Errorf("%s cannot be selected", p.Type)
			}
		}
		if len(public) == 0 {
			continue
		}
		for _, p := range x.Event.public(x) {
			if got, want := reflect.TypeOf(p.data), reflect.TypeOf(publicTypes[p.name].Data); got != want {
				t.Errorf("%s is made of %v, the catalogue says %v", p.name, got, want)
			}
			if !slices.Contains(causes[p.name], x.Type) {
				causes[p.name] = append(causes[p.name], x.Type)
			}
		}
	}
	listed := map[string][]string{}
	for _, c := range Catalogue {
		if listed[c.Name] != nil || c.When == "" {
			t.Errorf("%s is listed twice, or does not say when it is told", c.Name)
		}
		listed[c.Name] = c.From
		for _, from := range c.From {
			if strings.HasPrefix(from, "account.") != c.OfAccount() {
				t.Errorf("%s is of accounts and of the configuration", c.Name)
			}
		}
	}
	order := cmpopts.SortSlices(strings.Compare)
	if diff := cmp.Diff(listed, causes, order); diff != "" {
		t.Errorf("catalogue (-listed +made):\n%s", diff)
	}
}

// everyEntry is an entry of the log with each event there is, and with those
// that go by another public name.
func everyEntry() (all []Entry) {
	for _, e := range slices.Concat(goldenEvents, otherwise) {
		stream := ConfigStream
		if _, ok := e.(accountEvent); ok {
			stream = "account-s"
		} else if strings.HasPrefix(e.eventType(), "webhook.") {
			stream = "webhook-w"
		} else if strings.HasPrefix(e.eventType(), "api-key.") {
			stream = APIKeyStream
		} else if e.eventType() == "login.unknown.v1" {
			stream = LoginsStream
		}
		all = append(all, Entry{ID: NewID(), Type: e.eventType(), Stream: stream, Time: time.Unix(0, 0).UTC(), Event: e})
	}
	return all
}

// FuzzDecode holds that no input panics, and that what decodes encodes and
// decodes to itself.
func FuzzDecode(f *testing.F) {
	for _, e := range goldenEvents {
		clear, _ := encodeClear(e, goldenMeta)
		personal, _ := encodePersonal(e, goldenMeta)
		f.Add(e.eventType(), clear, personal)
	}
	f.Fuzz(func(t *testing.T, name string, clear, personal []byte) {
		e, m, err := DecodeEvent(name, clear, personal)
		if err != nil {
			return
		}
		c, err1 := encodeClear(e, m)
		p, err2 := encodePersonal(e, m)
		if err1 != nil || err2 != nil {
			return // it holds JSON of its own, and that may be what nobody wrote
		}
		again, m2, err := DecodeEvent(e.eventType(), c, p)
		if err != nil {
			t.Fatalf("what was encoded does not decode: %v", err)
		}
		c2, _ := encodeClear(again, m2)
		p2, _ := encodePersonal(again, m2)
		if string(c) != string(c2) || string(p) != string(p2) {
			t.Errorf("encode and decode is not the identity:\n%s %s\n%s %s", c, p, c2, p2)
		}
	})
}

// TestTraceparent: where a request stands in its trace is in the clear part,
// which is proved, and only where there is a trace.
func TestTraceparent(t *testing.T) {
	const traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	traced := goldenMeta
	traced.Traceparent = traceparent
	clear, err := encodeClear(RoleDeleted{"AUDITOR"}, traced)
	if err != nil || !strings.Contains(string(clear), `"traceparent":"`+traceparent+`"`) {
		t.Fatalf("the clear part is %s, %v", clear, err)
	}
	e, m, err := DecodeEvent("role.deleted.v1", clear, nil)
	if err != nil || m.Traceparent != traceparent {
		t.Fatalf("it is read as %+v, %v", m, err)
	}
	public, err := Public(Entry{Type: "role.deleted.v1", Event: e, Meta: m})
	if err != nil || len(public) != 1 || public[0].Traceparent != traceparent {
		t.Errorf("the public event is %+v, %v", public, err)
	}
	if clear, err = encodeClear(RoleDeleted{"AUDITOR"}, goldenMeta); err != nil || strings.Contains(string(clear), "traceparent") {
		t.Errorf("without a trace the clear part is %s, %v", clear, err)
	}
}
