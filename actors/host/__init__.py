"""What the replicas of one machine share, and the handle by which an application uses a replica."""
