package httpapi

import (
	"context"
	"slices"

	"accountledger/domain"
)

func (s *server) membershipRoutes() {
	onMembership := slices.Concat(onChange, []domain.Code{domain.CodeGroupNotFound, domain.CodeAdminRequired})
	handle(s, route{
		method: "PUT", path: "/v1/accounts/{sub}/groups/{groupId}", name: "setMembership", scope: scopeAccountsWrite, status: 200, answer: domain.Account{},
		summary: "Add an account to a group or set its roles",
		text:    "Makes the account a member of the group and replaces its roles there. The roles must exist and be allowed by the group's type. Changing members of CIDAAS_ADMINS requires the scope accounts:admin.",
		example: `{"roles":["CUSTOMER"]}`,
		codes:   onMembership,
	}, s.setMembership)
	handle(s, route{
		method: "DELETE", path: "/v1/accounts/{sub}/groups/{groupId}", name: "leaveGroup", scope: scopeAccountsWrite, status: 200, answer: domain.Account{},
		summary: "Remove an account from a group",
		text:    "Removes the account from the group. Changes nothing if it is not a member. Removing an account from CIDAAS_USERS or CIDAAS_ADMINS requires the scope accounts:admin.",
		codes:   onMembership,
	}, s.leaveGroup)
}

type setMembershipInput struct {
	Sub
	GroupID
	Command
	JSON[newMembership]
}

// newMembership is the body of PUT /v1/accounts/{sub}/groups/{groupId}.
type newMembership struct {
	Roles []string `json:"roles" maxItems:"100" doc:"All roles of the member in the group."`
}

func (s *server) setMembership(ctx context.Context, c *call, in *setMembershipInput) (*answer, error) {
	return s.execute(ctx, c, in.Command, in.Sub.Sub, domain.SetMembership{GroupID: in.GroupID.GroupID, Roles: in.value.Roles})
}

type leaveGroupInput struct {
	Sub
	GroupID
	Command
}

func (s *server) leaveGroup(ctx context.Context, c *call, in *leaveGroupInput) (*answer, error) {
	return s.execute(ctx, c, in.Command, in.Sub.Sub, domain.LeaveGroup{GroupID: in.GroupID.GroupID})
}
