"""Contact with comfy, one file a contact point. Only nodes/ and its folders import it."""
