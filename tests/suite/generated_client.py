"""Does one operation through the client that was generated from openapi.json, and prints the answer as JSON."""

import json
import sys
from uuid import UUID

from client import Client
from client.api.apply import apply
from client.api.users import create_user, delete_user, list_users
from client.models import NewApply, NewUser

url, operation, *arguments = sys.argv[1:]
portal = Client(base_url=url)
if operation == "create":
    answer = create_user.sync(client=portal, body=NewUser(name=arguments[0], email=arguments[1]))
elif operation == "list":
    answer = list_users.sync(client=portal)
elif operation == "delete":
    answer = delete_user.sync(UUID(arguments[0]), client=portal)
elif operation == "apply":
    answer = apply.sync(client=portal, body=NewApply(triggered_by=arguments[0]))
else:
    sys.exit(f"unknown operation {operation}")
print(json.dumps(answer.to_dict()))
