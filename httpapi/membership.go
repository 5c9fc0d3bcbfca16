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
		summary: "Make the account a member of a group",
		text:    "Its roles there are replaced. They must exist, and be what the group's type allows. The members of CIDAAS_ADMINS are changed with the scope accounts:admin only.",
		example: `{"roles":["CUSTOMER"]}`,
		codes:   onMembership,
	}, s.setMembership)
	handle(s, route{
		method: "DELETE", path: "/v1/accounts/{sub}/groups/{groupId}", name: "leaveGroup", scope: scopeAccountsWrite, status: 200, answer: domain.Account{},
		summary: "Take the account out of a group",
		text:    "Where it is no member, nothing changes. Out of CIDAAS_USERS and CIDAAS_ADMINS with the scope accounts:admin only.",
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
