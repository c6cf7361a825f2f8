"""Reading and writing video files: the frames that a player shows, each always with the same index."""

from motionanim.data.video.container import VideoError as VideoError
from motionanim.data.video.reader import Video as Video
from motionanim.data.video.reader import cover_size as cover_size
from motionanim.data.video.writer import check_video_size as check_video_size
from motionanim.data.video.writer import write_video as write_video
